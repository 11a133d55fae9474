"""`stream-app replay-session`: what a session's row and ranking were at an earlier click, computed anew.

From the clicks topic, by the model that served then and the worker's own rules (:mod:`stream_app.core`). Which model
that was, the rankings tell: the models topic keeps the newest announcement alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.bundle.runtime import Model
from schemas.errors import MessageError
from schemas.formats.codec import PLAIN, Formats, formats_of
from schemas.messages.click import ClickLimits, ClickRejectedError
from schemas.messages.forget import decode_forget
from schemas.messages.ranking import RankedItem, Ranking, decode_ranking
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.errors import StreamError
from stream_app.kafka.plain_consumer import partition_of, plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.announced import ModelError, bundles
from stream_app.tools.terminal import shown, utc

Agreement = Literal["equal", "equal but for rounding", "different", "not published"]
_CLOSE = 1e-2
"""Float32 sums differ in their last bits with the batch that they were computed in, and half precision, which rows
keep, turns that into one step of 2^-11 now and then."""


class ReplayError(StreamError):
    """A click that cannot be replayed; the message says why."""


@dataclass(frozen=True)
class Replayed:
    """A session at one of its clicks.

    Attributes:
        partition: of the clicks topic.
        row: as the worker wrote it after that click.
        ranking: what follows from it; its source is the click.
        agreement: with the ranking that was published.
        note: what could not be known.
    """

    partition: int
    row: SessionState
    ranking: Ranking
    agreement: Agreement
    note: str | None


def clicks_of(
    session_id: str, records: Iterable[Message], limits: ClickLimits, formats: Formats = PLAIN
) -> list[SourcedClick]:
    """The session's clicks among the records of a partition; what is no click is left out, as workers do."""
    key = session_id.encode()
    found: list[SourcedClick] = []
    for record in records:
        if record.key() != key:
            continue
        kind, arrived = record.timestamp()
        now_ms = arrived if kind == TIMESTAMP_LOG_APPEND_TIME else 2**62
        try:
            click = formats.decode_click(record.key(), record.value(), now_ms=now_ms, limits=limits)
        except ClickRejectedError:
            if decode_forget(record.key(), record.value()) is not None:
                found.clear()
            continue
        found.append(SourcedClick(click, record.offset()))
    return found


def published_of(session_id: str, records: Iterable[Message], formats: Formats = PLAIN) -> dict[int, Ranking]:
    """The session's rankings by the offset of their click; of several the last, from which the session went on."""
    key, found = session_id.encode(), {}
    for record in records:
        if record.key() == key:
            try:
                ranking = decode_ranking(formats.rankings.to_json(record.value() or b""))
            except MessageError:
                continue
            found[ranking.source.offset] = ranking
    return found


def replayed(
    clicks: Sequence[SourcedClick],
    published: Mapping[int, Ranking],
    open_model: Callable[[str], Model],
    rules: SessionRules,
    partition: int,
) -> Replayed:
    """The session after the last of these clicks, each applied by the model that answered it.

    A model's hidden states come of its own clicks alone: those before it was announced matter by their items. So only
    the models since the last rebuild are opened, by ``open_model``, which raises ModelError where one is gone. Raises
    ReplayError where the last click has no ranking, and so no model.
    """
    last = clicks[-1].offset
    answer = published.get(last)
    if answer is None:
        raise ReplayError(
            f"the click at offset {last} has no ranking on the topic: it is not answered yet, or retention removed that"
        )
    model = open_model(answer.model_version)
    first, models, note = _since_the_rebuild(clicks, published, model, open_model)
    row: SessionState | None = None
    for n, click in enumerate(clicks):
        by = models[click.offset] if n >= first else model
        done = recommend({} if row is None else {click.click.session_id: row}, [click], by, rules)
        row = done.rows[click.click.session_id]
        if n < first:  # another model's: its items alone count
            row = msgspec.structs.replace(row, hidden=None, model_version="")
    assert row is not None
    [ranked] = done.ranked
    items = tuple(
        RankedItem(model.vocabulary.items[i], s) for i, s in zip(ranked.top_index, ranked.top_score, strict=True)
    )
    ranking = msgspec.structs.replace(answer, items=items[: len(answer.items)], reason=ranked.reason)
    return Replayed(partition, row, ranking, agreement_of(ranking, answer), note)


def _since_the_rebuild(
    clicks: Sequence[SourcedClick], published: Mapping[int, Ranking], model: Model, open_model: Callable[[str], Model]
) -> tuple[int, dict[int, Model], str | None]:
    """From which click on the hidden state goes back unbroken, and the model of each click from there."""
    models: dict[int, Model] = {}
    for n in reversed(range(len(clicks))):
        answer = published.get(clicks[n].offset)
        if answer is None:
            return (
                n + 1,
                models,
                f"the click at offset {clicks[n].offset} has no ranking: the state goes back to it alone",
            )
        try:
            by = open_model(answer.model_version)
        except ModelError as error:
            # A model that was trained goes on from no other's states.
            note = None if model.states_of == model.version else f"{error}; the session is taken for rebuilt since then"
            return n + 1, models, note
        if by.states_of != model.states_of:
            return n + 1, models, None
        models[clicks[n].offset] = by
    return 0, models, None


def agreement_of(found: Ranking, published: Ranking) -> Agreement:
    """How the two rankings compare."""
    if found.items == published.items and found.reason == published.reason:
        return "equal"
    ours, theirs = (np.array([item.score for item in one.items]) for one in (found, published))
    if found.reason != published.reason or len(ours) != len(theirs) or not np.allclose(ours, theirs, atol=_CLOSE):
        return "different"
    return "equal but for rounding"


def replay_session(
    session_id: str, settings: StreamSettings, *, at: int | None, json: bool, out: Console, err: Console
) -> int:
    """Print the row and the ranking; returns the exit code, 1 where there is no such click."""
    topics, app_id, key = settings.topics, settings.app_id, session_id.encode()
    formats = formats_of(settings.schema_registry, topics)
    with plain_consumer(settings.kafka, topics.clicks, name=f"{app_id}-replay-session") as records:
        home = partition_of(key, len(records.partitions))
        with err.status(f"reading {topics.clicks}"):
            clicks = clicks_of(session_id, records.history(home), settings.clicks.limits, formats)
    upto = [click for click in clicks if at is None or click.offset <= at]
    if not upto or (at is not None and upto[-1].offset != at):
        offsets = ", ".join(str(click.offset) for click in clicks[-20:]) or "none"
        where = f"partition {home} of {topics.clicks}"
        wanted = "no click" if at is None else f"no click at offset {at}"
        err.print(f"session {session_id!r} has {wanted} in {where}; its clicks there: {offsets}", markup=False)
        return 1
    with plain_consumer(settings.kafka, topics.rankings, name=f"{app_id}-replay-session") as records:
        # The worker places rankings by their key.
        own = records.history(partition_of(key, len(records.partitions)))
        with err.status(f"reading {topics.rankings}"):
            rankings = published_of(session_id, own, formats)
    rules = SessionRules(
        idle_gap_ms=settings.clicks.idle_gap_ms,
        recent_items=settings.worker.recent_items,
        advance_on=settings.clicks.moving,
        hide_type=settings.worker.hide_type,
    )
    with err.status("computing the session anew"), bundles(settings) as announced:
        found = replayed(upto, rankings, lambda v: announced.open(v).ranking(settings.worker.published), rules, home)
    if json:
        print(_as_json(found))
    else:
        _show(found, upto[-1], out)
    return 0


def _as_json(found: Replayed) -> str:
    row, ranking = found.row, found.ranking
    return msgspec.json.encode(
        {
            "session_id": ranking.session_id,
            "at": {"partition": found.partition, "offset": row.offset},
            "model_version": ranking.model_version,
            "row": {
                "clicks": row.clicks,
                "last_click": row.last_click,
                "recent": row.recent,
                **({"purchased": row.purchased} if row.purchased else {}),
                "model_version": row.model_version or None,
                "hidden": None if row.hidden is None else row.hidden.astype(np.float32).tolist(),
            },
            "reason": ranking.reason,
            "items": ranking.items,
            "published": found.agreement,
            "note": found.note,
        }
    ).decode()


def _show(found: Replayed, click: SourcedClick, out: Console) -> None:
    row, ranking = found.row, found.ranking
    table = Table(title=Text.assemble("Session ", shown(ranking.session_id)), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("click", f"partition {found.partition}, offset {row.offset:,}, {utc(click.click.timestamp)}")
    table.add_row("item", shown(click.click.item_id))
    table.add_row("answered by", f"{ranking.model_version} ({ranking.reason.value})")
    table.add_row("clicks", f"{row.clicks:,}")
    table.add_row(f"last {len(row.recent)} items", Text("  ").join(shown(item_id) for item_id in row.recent))
    if row.purchased:
        table.add_row("purchased", Text("  ").join(shown(item_id) for item_id in row.purchased))
    ranked = (Text.assemble(shown(item.item_id), f" {item.score:.4f}") for item in ranking.items)
    table.add_row("ranking", Text("  ").join(ranked))
    table.add_row("published", found.agreement)
    out.print(table)
    if found.note is not None:
        out.print(found.note, style="yellow", markup=False)
