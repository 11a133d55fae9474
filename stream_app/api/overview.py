"""What the dashboard shows, and what it raises an alarm for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.ranking import RankingReason
from stream_app.api.backlog import Waiting
from stream_app.api.traffic import RECENT_MS, SPAN_MS, Recent, Series, Traffic

_SILENT_MS: Final = 30_000
_TAKEN_MS: Final = 60_000
"""A worker takes an announced model into service within seconds; a large bundle is loaded from far away in this."""
_MOST_WAITING: Final = 1_000
"""Clicks that may wait, however few are answered: a batch or two."""
_MOST_REJECTED: Final = 0.01
_MOST_UNKNOWN: Final = 0.3
_FEWEST_KNOWN: Final = 50
"""Clicks in a minute: of fewer a share says nothing."""
_MINUTE_MS: Final = 60_000


class AlarmName(StrEnum):
    """What each is for: `docs/page.md`."""

    NOT_READY = "not-ready"
    SILENT = "silent"
    BEHIND = "behind"
    NO_MODEL = "no-model"
    MODEL_NOT_SERVED = "model-not-served"
    REJECTED = "rejected"
    UNKNOWN_ITEMS = "unknown-items"
    NOT_FINITE = "not-finite"


class Alarm(msgspec.Struct):
    """Something that somebody should look at."""

    name: AlarmName
    says: str


class Overview(msgspec.Struct):
    """The last ten minutes, by the broker's clock.

    Attributes:
        now: ms since the epoch.
        models, reasons: shares of the rankings of the last minute.
        rejected: records by reason.
        backlog: clicks that no worker has acknowledged.
        backlog_problem: why `backlog` is empty; None where it is not.
    """

    now: int
    recent: Recent
    series: Series
    models: dict[str, float]
    reasons: dict[str, float]
    rejected: dict[str, int]
    backlog: list[Waiting]
    backlog_problem: str | None
    alarms: list[Alarm]


@dataclass(frozen=True)
class Known:
    """What an overview is made of, beside the traffic."""

    now_ms: int
    backlog: Sequence[Waiting]
    backlog_problem: str | None
    serving: ModelAnnouncement | None
    readiness: Mapping[str, str | None]


def overview(traffic: Traffic, known: Known) -> Overview:
    """As of now."""
    now_ms = known.now_ms
    return Overview(
        now=now_ms,
        recent=traffic.recent(now_ms),
        series=traffic.series(now_ms),
        models=traffic.shares(now_ms, _MINUTE_MS, "models"),
        reasons=traffic.shares(now_ms, _MINUTE_MS, "reasons"),
        rejected=traffic.rejected(now_ms),
        backlog=list(known.backlog),
        backlog_problem=known.backlog_problem,
        alarms=alarms(traffic, known),
    )


def alarms(traffic: Traffic, known: Known) -> list[Alarm]:
    """Those raised now."""
    now_ms = known.now_ms
    waiting = sum(one.clicks or 0 for one in known.backlog)
    answered, rejected = traffic.rankings(now_ms, SPAN_MS), sum(traffic.rejected(now_ms).values())
    lately = traffic.shares(now_ms, _SILENT_MS, "models")
    reasons = traffic.shares(now_ms, _MINUTE_MS, "reasons")
    unknown = reasons.get(RankingReason.UNKNOWN_ITEM, 0.0) + reasons.get(RankingReason.POPULARITY, 0.0)
    serving = known.serving
    found = [Alarm(AlarmName.NOT_READY, f"{part}: {why}") for part, why in known.readiness.items() if why is not None]
    if waiting and not lately:
        found.append(
            Alarm(AlarmName.SILENT, f"{waiting:,} clicks wait and none was answered for 30 s: does a worker run?")
        )
    elif waiting > max(_MOST_WAITING, traffic.rankings(now_ms, RECENT_MS)):
        found.append(Alarm(AlarmName.BEHIND, f"{waiting:,} clicks wait, more than were answered in the last 10 s"))
    if serving is None:
        found.append(Alarm(AlarmName.NO_MODEL, "no model is announced: workers wait for one"))
    elif (
        serving.version not in lately
        and now_ms - serving.announced_at > _TAKEN_MS
        # In an experiment its alias may have few sessions, or none.
        and not {None, serving.alias}.isdisjoint(traffic.variants(now_ms, _SILENT_MS))
    ):
        found.append(
            Alarm(AlarmName.MODEL_NOT_SERVED, f"{serving.version} is announced and ranks nothing: was it refused?")
        )
    if rejected > _MOST_REJECTED * (answered + rejected):
        found.append(Alarm(AlarmName.REJECTED, f"{rejected:,} of {answered + rejected:,} records were rejected"))
    if unknown > _MOST_UNKNOWN and traffic.rankings(now_ms, _MINUTE_MS) >= _FEWEST_KNOWN:
        found.append(
            Alarm(AlarmName.UNKNOWN_ITEMS, f"{unknown:.0%} of the clicks are on items that the model does not know")
        )
    if reasons.get(RankingReason.NOT_FINITE):
        found.append(Alarm(AlarmName.NOT_FINITE, "the model answers some clicks with numbers that are not finite"))
    return found
