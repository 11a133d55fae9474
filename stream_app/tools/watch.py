"""Rankings in the terminal as they are published. A plain reader: it takes nothing away from other consumers."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator

from confluent_kafka import OFFSET_BEGINNING, Message
from rich.console import Console
from rich.text import Text

from schemas.errors import MessageError
from schemas.formats.codec import Codec, formats_of
from schemas.messages.ranking import Ranking, RankingReason, decode_ranking, encode_ranking
from stream_app.kafka.plain_consumer import partition_of, plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.terminal import shown

_ITEMS_SHOWN = 5
_WAIT_MS = 500
_REASONS = {
    RankingReason.UNKNOWN_ITEM: "item unknown",
    RankingReason.POPULARITY: "popular items",
    RankingReason.NOT_FINITE: "popular items: the model's numbers are not finite",
}


def rankings(
    records: Iterable[Message],
    *,
    session_id: str | None,
    limit: int | None,
    warn: Callable[[str], None],
    codec: Codec | None = None,
) -> Iterator[Ranking]:
    """The rankings among the records: of one session if it is named, at most `limit`."""
    codec = codec or Codec()
    key = None if session_id is None else session_id.encode()
    left = limit
    for record in records:
        if key is not None and record.key() != key:
            continue
        if record.value() is None:
            continue  # the session was forgotten
        try:
            ranking = decode_ranking(codec.to_json(record.value() or b""))
        except MessageError as error:
            warn(f"partition {record.partition()}, offset {record.offset()}: {error}")
            continue
        yield ranking
        if left is not None:
            left -= 1
            if left == 0:
                return


def as_line(ranking: Ranking) -> Text:
    """A ranking on one line: session, click, best items, and what is worth knowing beside them."""
    line = Text.assemble(shown(ranking.session_id, "cyan"), "  clicked ", shown(ranking.item_id, "bold"), "  next: ")
    line.append_text(Text(", ").join(shown(item.item_id, "green") for item in ranking.items[:_ITEMS_SHOWN]))
    if len(ranking.items) > _ITEMS_SHOWN:
        line.append(f" and {len(ranking.items) - _ITEMS_SHOWN} more")
    aside = [ranking.model_version]
    if ranking.reason in _REASONS:
        aside.append(_REASONS[ranking.reason])
    return line.append(f"  ({', '.join(aside)})", "dim")


def watch(
    settings: StreamSettings,
    *,
    session_id: str | None,
    limit: int | None,
    from_beginning: bool,
    json: bool,
    out: Console,
    err: Console,
) -> int:
    """`stream-app watch`: print rankings until the limit or Ctrl-C; returns the exit code."""

    def warn(text: str) -> None:
        err.print(text, style="yellow", markup=False, highlight=False)

    topic = settings.topics.rankings
    codec = formats_of(settings.schema_registry, settings.topics).rankings
    try:
        with plain_consumer(settings.kafka, topic, name=f"{settings.app_id}-watch", wait_ms=_WAIT_MS) as consumer:
            watched = consumer.partitions
            if session_id is not None:  # workers place rankings by their key
                watched = [partition_of(session_id.encode(), len(watched))]
            starts = dict.fromkeys(watched, OFFSET_BEGINNING) if from_beginning else consumer.ends(watched)
            err.print(f"watching {topic}; Ctrl-C ends", style="dim", markup=False, highlight=False)
            records = consumer.follow(starts, go_on=lambda: True, warn=warn)
            for ranking in rankings(records, session_id=session_id, limit=limit, warn=warn, codec=codec):
                if json:
                    print(encode_ranking(ranking).decode(), flush=True)
                else:
                    out.print(as_line(ranking), soft_wrap=not out.is_terminal, no_wrap=out.is_terminal)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `stream-app watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return 0
    return 0
