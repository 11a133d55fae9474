"""What the logs leave out, and what they never do: lines of a program's log in, lines out."""

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest
import structlog

from schemas import logs
from schemas.logs import configure_logs


class Log:
    """JSON logs in memory, folded by a clock that the test moves."""

    now = 0.0

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    root, hook, log = logging.getLogger(), threading.excepthook, Log()
    handlers, level, folding = root.handlers[:], root.level, logs.Folding
    monkeypatch.setattr(logs, "Folding", lambda: folding(clock=lambda: log.now))
    configure_logs("json", "info", quiet={})
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(log.stream)
    yield log
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_outage_is_told_once_and_then_how_often(log: Log) -> None:
    library = logging.getLogger("aiokafka")
    for node in range(100):
        library.error("Unable connect to node with id %s: refused", node)
    library.error("Unable to update metadata")
    log.now = 31.0
    library.error("Unable connect to node with id 0: refused")
    first, other, again = log.lines()
    assert first["event"] == "Unable connect to node with id 0: refused"
    assert other["event"] == "Unable to update metadata"
    assert "repeated" not in first
    assert "repeated" not in other
    assert again["repeated"] == 99


def test_our_own_lines_are_folded_only_when_they_say_the_same(log: Log) -> None:
    ours = structlog.get_logger("stream_app")
    for partition in (1, 1, 2, 1):
        ours.warning("stale rows were left out", partition=partition)
        ours.info("tables recovered", partition=partition)
    log.now = 31.0
    ours.warning("stale rows were left out", partition=1)
    lines = [line for line in log.lines() if line["level"] == "warning"]
    assert [(line["partition"], line.get("repeated")) for line in lines] == [(1, None), (2, None), (1, 2)]


def test_news_of_every_level_but_warnings_is_never_held_back(log: Log) -> None:
    for _ in range(3):
        logging.getLogger("x").info("tables recovered")
        logging.getLogger("x").critical("no progress")
    assert len(log.lines()) == 6


def test_a_thread_that_ends_with_an_error_is_told_as_json(log: Log) -> None:
    def broken() -> None:
        raise RuntimeError("out of luck")

    thread = threading.Thread(target=broken, name="a thread")
    thread.start()
    thread.join()
    [line] = log.lines()
    assert line["event"] == "a thread has ended"
    assert line["thread"] == "a thread"
    assert "RuntimeError: out of luck" in str(line["exception"])


def test_logins_in_urls_are_masked_wherever_they_come_from(log: Log) -> None:
    """In what libraries say, in our own fields, and in tracebacks."""
    url = "ftp://robot:hunter2@store/x"
    logging.getLogger("fsspec").warning("cannot open %s", url)
    structlog.get_logger("stream_app").error("refused", uri=url)
    try:
        raise OSError(f"{url} is away")
    except OSError:
        structlog.get_logger("stream_app").exception("failed")
    logging.getLogger("botocore.auth").debug("x-amz-security-token:hunter2")
    assert "hunter2" not in log.stream.getvalue()
    assert log.stream.getvalue().count("ftp://********@store/x") == 3
    assert len(log.lines()) == 3
