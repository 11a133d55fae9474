"""Which topics the local store was made from.

A topic that is deleted and created again has its old name and new offsets: source offsets in rows and the changelog
offset in the store would be compared with offsets of another topic. Kafka gives each incarnation an id of its own.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas import durable
from schemas.config.settings import KafkaConnection
from stream_app.errors import StoreError

log = structlog.get_logger(__name__)

_FILE: Final = "topics.json"
_TIMEOUT_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 10.0


def topic_ids(connection: KafkaConnection, names: list[str]) -> dict[str, str]:
    """The id of each topic's present incarnation.

    Raises:
        StoreError: the brokers do not tell.
    """
    # In a variable: its futures fail once it is collected.
    admin = AdminClient(connection.librdkafka(), logger=logging.getLogger("librdkafka"))
    try:
        described = admin.describe_topics(TopicCollection(names), request_timeout=_TIMEOUT_SECONDS)
        return {name: str(future.result(_TIMEOUT_SECONDS).topic_id) for name, future in described.items()}
    except (KafkaException, TimeoutError) as error:
        raise StoreError(f"the brokers do not describe the topics {', '.join(names)}: {error}") from error


async def watch_identity(
    connection: KafkaConnection,
    topics: Mapping[str, str | None],
    *,
    on_fatal: Callable[[BaseException], None],
    begins_anew: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    every: float = _LOOK_SECONDS,
) -> None:
    """Tell `on_fatal` when a topic is no longer the one with its id, and end; look every few seconds.

    Whoever reads it may not notice: once the new one has grown as long as the old one was, there is a record at the
    offset that is to be read next, and those before it would never be read.

    Args:
        connection: to the brokers.
        topics: by name, the id of the one that is read; None is the one that is there when it is first looked for.
        on_fatal: told a StoreError.
        begins_anew: in place of that, for topics whose reader can begin again while it runs.
        every: so many seconds.
    """
    admin = AdminClient(connection.librdkafka(), logger=logging.getLogger("librdkafka"))
    known, asked = {name: topic_id for name, topic_id in topics.items() if topic_id}, TopicCollection(list(topics))
    while True:
        for name, described in admin.describe_topics(asked, request_timeout=_TIMEOUT_SECONDS).items():
            try:
                now = str((await asyncio.wrap_future(described)).topic_id)
            except KafkaException:  # Kafka is away, or the topic is, and whoever reads it tells so
                continue
            if known.setdefault(name, now) != now:
                if (begin := begins_anew.get(name)) is not None:
                    log.warning("the topic was deleted and created again; it is read from its beginning", topic=name)
                    known[name] = now
                    begin()
                    continue
                on_fatal(
                    StoreError(
                        f"the topic {name} was deleted and created again while it was read: some records of the new "
                        "one were passed over. The next start reads it from its beginning, or says what to do first"
                    )
                )
                return
        await asyncio.sleep(every)


def check_identity(data_dir: Path, *, clicks: tuple[str, str], changelog: tuple[str, str], tables: Path) -> None:
    """Compare the topics (name, id) with those that `data_dir` was made from, and remember them.

    A new changelog makes the local tables worthless: they are removed, to be restored from what it holds. So they are
    when it can't be read any more what they were made from. New clicks with an old changelog cannot be served.

    Args:
        data_dir: the worker's folder.
        clicks: name and id of the clicks topic.
        changelog: name and id of the table's changelog topic.
        tables: where the local tables lie, inside `data_dir`.

    Raises:
        StoreError: the clicks topic is another one, its rows are still of the old one.
        OSError: the folder cannot be read or written.
    """
    file = data_dir / _FILE
    now = {"clicks": clicks[1], "changelog": changelog[1]}
    before = _read(file) if file.exists() else now
    if before is None:
        log.warning(
            "the file is damaged; the local tables are removed, and restored from the changelog", file=str(file)
        )
        _remove(tables)
    elif before["changelog"] != now["changelog"]:
        log.warning(
            "the changelog topic was created anew; the local tables are of the old one and are removed",
            topic=changelog[0],
        )
        _remove(tables)
    elif before["clicks"] != now["clicks"]:
        raise StoreError(
            f"the topic {clicks[0]} was created anew, but {changelog[0]} still holds rows with offsets of the old one, "
            f"which would make new clicks look redelivered. Stop all workers, delete the topic {changelog[0]}, run "
            f"`stream-app topics` and start again"
        )
    if before != now or not file.exists():
        durable.replace(file, json.dumps(now).encode())


def _read(file: Path) -> dict[str, str] | None:
    """The ids in the file; None if it is damaged."""
    try:
        ids = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    known = isinstance(ids, dict) and all(isinstance(ids.get(topic), str) for topic in ("clicks", "changelog"))
    return ids if known else None


def _remove(tables: Path) -> None:
    """Durably: after a power cut, old tables must not be beside the new ids. Raises OSError."""
    if tables.exists():
        shutil.rmtree(tables)
        durable.sync(tables.parent)
