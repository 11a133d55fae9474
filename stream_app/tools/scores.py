"""`stream-app scores`: how good the models have been online, from the scores topic."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
from confluent_kafka import Message
from rich import box
from rich.console import Console
from rich.table import Table

from schemas.errors import MessageError
from schemas.messages.score import Score, Tally, comparable, decode_score
from schemas.messages.split import is_shadow
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.terminal import shown, utc

OF_PREDICTIONS: Final = ("type", "reason")
"""Told of predictions, not of a whole score."""
GROUPS: Final = ("variant", "market", "window", *OF_PREDICTIONS)


@dataclass
class Line:
    """A line of the table.

    Attributes:
        rankings: made; None where lines are by type or reason, of which only predictions are known.
        first_ms, last_ms: where its windows begin and end.
    """

    group: tuple[str, ...]
    rankings: int | None
    tally: Tally
    first_ms: int
    last_ms: int


def newest_scores(records: Iterable[Message], warn: Callable[[str], None]) -> list[Score]:
    """The scores that count among the records of a partition: the last one under each key."""
    newest: dict[bytes | None, Score] = {}
    now_ms = time.time_ns() // 1_000_000
    for record in records:
        try:
            score = decode_score(record.value())
        except MessageError as error:
            warn(f"partition {record.partition()}, offset {record.offset()}: {error}")
            continue
        if score.has_begun(now_ms):
            newest[record.key()] = score
        else:
            warn(f"partition {record.partition()}, offset {record.offset()}: a score of a window in the future")
    return list(newest.values())


def lines(scores: Iterable[Score], by: tuple[str, ...], *, since_ms: int = 0) -> list[Line]:
    """Sums by model and `by`, the model that ranked first coming first; of windows that end after `since_ms`.

    What a model ranked as a shadow stands under its variant, and is left out where variants are not told apart. So are
    scores by another k than that of the newest window.
    """
    found: dict[tuple[str, ...], Line] = {}
    split = next((name for name in by if name in OF_PREDICTIONS), None)
    for score in comparable(scores):
        if score.window_start + score.window_ms <= since_ms or (is_shadow(score.variant) and "variant" not in by):
            continue
        parts = {"type": score.types, "reason": score.reasons}.get(split or "", {"": score.total})
        for name, tally in parts.items():
            labels = {
                "variant": score.variant or "",
                "market": score.market or "",
                "window": utc(score.window_start),
                "type": name,
                "reason": name,
            }
            group = (score.model_version, *(labels[one] for one in by))
            line = found.get(group)
            if line is None:
                first, last = score.window_start, score.window_start + score.window_ms
                line = found[group] = Line(group, None if split else 0, Tally(), first, last)
            line.tally.add(tally)
            line.first_ms = min(line.first_ms, score.window_start)
            line.last_ms = max(line.last_ms, score.window_start + score.window_ms)
            if line.rankings is not None:
                line.rankings += sum(score.rankings.values())
    return sorted(found.values(), key=lambda line: (line.first_ms, line.group))


def print_scores(
    settings: StreamSettings,
    *,
    by: tuple[str, ...],
    last_ms: int | None,
    json: bool,
    out: Console,
    err: Console,
) -> int:
    """Print the scores of the last so many ms of click time, None for all; returns the exit code, 1 without any."""

    def warn(text: str) -> None:
        err.print(text, style="yellow", markup=False, highlight=False)

    scores: list[Score] = []
    name, group = settings.topics.scores, f"{settings.app_id}-scores"
    with plain_consumer(settings.kafka, name, name=group) as topic, err.status(f"reading {name}"):
        for partition in topic.partitions:
            scores += newest_scores(topic.history(partition), warn)
    newest = max((score.window_start + score.window_ms for score in scores), default=0)
    found = lines(scores, by, since_ms=0 if last_ms is None else newest - last_ms)
    if json:
        print(msgspec.json.encode([as_json(line, by) for line in found]).decode())
    elif found:
        out.print(_as_table(found, by, k=comparable(scores)[0].k))
    if not found:
        err.print(
            f"no scores in {settings.topics.scores}: `stream-app score` publishes them, once sessions click again",
            markup=False,
            highlight=False,
        )
    return 0 if found else 1


def as_json(line: Line, by: tuple[str, ...]) -> dict[str, object]:
    """A line for programs."""
    return {
        **dict(zip(("model_version", *by), line.group, strict=True)),
        **({} if line.rankings is None else {"rankings": line.rankings}),
        "predictions": line.tally.predictions,
        "hits": line.tally.hits,
        "recall": line.tally.recall,
        "mrr": line.tally.mrr,
        "from": line.first_ms,
        "to": line.last_ms,
    }


def _as_table(found: list[Line], by: tuple[str, ...], *, k: int) -> Table:
    table = Table(title="Online scores", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", *by):
        table.add_column(name, no_wrap=True)
    counted = found[0].rankings is not None
    for name in (*(("rankings",) if counted else ()), "predictions", f"Recall@{k}", f"MRR@{k}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("clicks from")
    table.add_column("to")
    for line in found:
        table.add_row(
            *(shown(name or "-") for name in line.group),
            *((f"{line.rankings:,}",) if line.rankings is not None else ()),
            f"{line.tally.predictions:,}",
            f"{line.tally.recall:.4f}",
            f"{line.tally.mrr:.4f}",
            utc(line.first_ms),
            utc(line.last_ms),
        )
    return table
