"""The trainer's logs: ours and librdkafka's in one style."""

import logging
from typing import Final, Literal

from schemas import logs

# librdkafka tells each lost connection at error level; those that matter reach us as errors of our calls.
_QUIET: Final = {"librdkafka": logging.CRITICAL}


def configure_logs(style: Literal["human", "json"], level: str) -> None:
    """Route what the trainer and its libraries say to standard error."""
    logs.configure_logs(style, level, quiet=_QUIET)
