"""Structured logs on standard error, for people or as one JSON object a line; Faust's and ours alike."""

import logging
import sys
from typing import Literal

import structlog

# Said at every start for what is meant so: topics are made by `stream-app topics`.
_EXPECTED = ("Topic creation disabled!",)


def _drop_expected(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED)


def configure_logs(style: Literal["human", "json"], level: str) -> None:
    """Route structlog and the standard library's logging to standard error in one style."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if style == "json" else structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_drop_expected)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At info these tell each rebalance in dozens of lines.
    quiet = logging.DEBUG if level == "debug" else max(logging.WARNING, root.level)
    for name in ("faust", "mode", "aiokafka", "aiohttp", "librdkafka"):
        logging.getLogger(name).setLevel(quiet)
