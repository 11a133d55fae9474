"""Structured logs on standard error, for people or as one JSON object a line: both commands' alike."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import structlog

from schemas.masking import masked

_FOLDED_SECONDS: Final = 30.0
_REMEMBERED: Final = 1000
_TELL_LOGINS: Final = ("aiobotocore", "botocore", "google", "s3fs", "urllib3")
"""At debug level they log requests as they are, with the token of a session or the signature of a URL."""


class Folding(logging.Filter):
    """Lets a warning or error pass, and its like not for a while: an outage of a minute made 6,000 lines.

    The next one of a kind that passes tells in `repeated` how many did not. In what libraries say, numbers make no
    difference.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[object, tuple[float, int]] = {}  # until when the like of it is held back, and how many were

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        if isinstance(record.msg, dict):
            said = repr([field for field in sorted(record.msg.items()) if field[0] != "timestamp"])
        else:
            said = re.sub(r"\d+", "0", record.getMessage())
        kind, now = (record.name, record.levelno, said), self._clock()
        with self._lock:
            until, held = self._held.get(kind, (now, 0))
            if now < until:
                self._held[kind] = until, held + 1
                return False
            if len(self._held) >= _REMEMBERED:
                self._held = {kind: one for kind, one in self._held.items() if now < one[0]}
            self._held[kind] = now + _FOLDED_SECONDS, 0
        if held and isinstance(record.msg, dict):
            record.msg = {**record.msg, "repeated": held}
        elif held:
            record.repeated = held
        return True


def _log_ended_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        log = structlog.get_logger("threading")
        log.error("a thread has ended", thread=args.thread and args.thread.name, exc_info=args.exc_value)


def _masked(_: object, __: str, line: Any) -> str:
    """Of what libraries say, and of tracebacks: the last step of a line."""
    return masked(str(line))


def configure_logs(
    style: Literal["human", "json"], level: str, *, quiet: Mapping[str, int], unsaid: tuple[str, ...] = ()
) -> None:
    """Route structlog and the standard library's logging to standard error in one style.

    `quiet` gives loggers of libraries the least level that is shown of them, unless `level` is debug. Messages that
    begin with one of `unsaid` are never shown.
    """
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
        # Plain tracebacks: the rich ones show local variables, and a client's configuration holds passwords.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer, _masked],
        )
    )
    handler.addFilter(Folding())
    if unsaid:
        handler.addFilter(lambda record: not record.getMessage().startswith(unsaid))
    threading.excepthook = _log_ended_thread
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in quiet.items():
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else max(least, root.level))
    for name in _TELL_LOGINS:
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
