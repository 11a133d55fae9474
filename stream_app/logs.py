"""The worker's logs: ours and Faust's in one style."""

import logging
from typing import Final, Literal

from schemas import logs

# At info these tell each rebalance in dozens of lines.
_QUIET: Final = dict.fromkeys(("faust", "mode", "aiokafka", "aiohttp", "librdkafka"), logging.WARNING)

# Said at every start for what is meant so: topics are made by `stream-app topics`.
_EXPECTED: Final = ("Topic creation disabled!",)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED)


def configure_logs(style: Literal["human", "json"], level: str) -> None:
    """Route what the worker and its libraries say to standard error."""
    logs.configure_logs(style, level, quiet=_QUIET)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
