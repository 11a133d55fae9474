"""The splits topic from the trainer's side: which share of the sessions each model serves, and changing that."""

from collections.abc import Mapping, Sequence

import structlog

from schemas.config.settings import KafkaConnection
from schemas.messages.refused import RecordRefusedError
from schemas.messages.split import MOST_PARTS, Split, Variant, decode_split, encode_split, places_of, shares_of
from trainer.errors import NoTopicError
from trainer.service.compacted import CompactedTopic

log = structlog.get_logger(__name__)


class SplitTopic:
    """The split of one application. Everything raises AnnounceError when the topic cannot be used."""

    def __init__(
        self, connection: KafkaConnection, topic: str, app_id: str, *, group: str, delivery_seconds: float
    ) -> None:
        self._topic = CompactedTopic(connection, topic, group=group, delivery_seconds=delivery_seconds)
        self.app_id = app_id

    def current(self) -> Split | None:
        """What workers divide by now, as far as the topic tells; None without one."""
        newest: Split | None = None
        for key, value in self._topic.records():
            if key != self.app_id.encode():
                continue
            try:
                newest = None if value is None else decode_split(key, value)
            except RecordRefusedError as error:
                log.warning("a split is not usable, and no worker uses it", key=str(key), error=str(error))
        return newest

    def current_if_used(self) -> Split | None:
        """The same, and None where there is no such topic: experiments are not in use."""
        try:
            return self.current()
        except NoTopicError:
            return None

    def put(self, split: Split | None) -> None:
        """Make workers divide by this split; None, or one without variants and shadows, ends it."""
        value = None if split is None or not (split.variants or split.shadow) else encode_split(split)
        self._topic.write(self.app_id.encode(), value, what="the split")


def told(split: Split) -> str:
    """The shares and shadows, for people."""
    shares = ", ".join(f"{alias} {places / 100:g} %" for alias, places in shares_of(split.variants).items())
    divided = f"split: {shares}" if shares else "no split: one model serves all sessions"
    return f"{divided}\nshadow: {', '.join(split.shadow)}" if split.shadow else divided


def moved(before: Sequence[Variant], shares: Mapping[str, int]) -> tuple[Variant, ...]:
    """The line on which each alias has so many places, with as few sessions elsewhere than before as there can be.

    Only sessions of an alias whose share falls move, and only to one whose share rises. ``before`` and ``shares`` each
    add up to `schemas.messages.split.PLACES`, or ``before`` is empty. Where that took more parts than a split may have,
    all is drawn anew.
    """
    left = dict(shares)
    line: list[tuple[str | None, int]] = []  # None: free
    for variant in before or [Variant(next(iter(shares)), 100.0)]:
        places = places_of(variant)
        kept = min(places, left.get(variant.alias, 0))
        if kept:
            left[variant.alias] -= kept
        line += [(variant.alias, kept), (None, places - kept)]
    parts = _joined(_given(line, left))
    return parts if len(parts) <= MOST_PARTS else _joined(list(shares.items()))


def _given(line: Sequence[tuple[str | None, int]], wanted: dict[str, int]) -> list[tuple[str, int]]:
    """The line with what is free on it given to those who want as much."""
    owned: list[tuple[str, int]] = []
    takers = iter([alias for alias, places in wanted.items() if places])
    taker = next(takers, "")
    for owner, places in line:
        if owner is not None:
            owned.append((owner, places))
            continue
        free = places
        while free:
            given = min(free, wanted[taker])
            owned.append((taker, given))
            free -= given
            wanted[taker] -= given
            if not wanted[taker]:
                taker = next(takers, "")
    return owned


def _joined(owned: Sequence[tuple[str, int]]) -> tuple[Variant, ...]:
    """Neighbours of one alias as one part."""
    line: list[tuple[str, int]] = []
    for alias, places in owned:
        if line and line[-1][0] == alias:
            line[-1] = (alias, line[-1][1] + places)
        elif places:
            line.append((alias, places))
    return tuple(Variant(alias, places / 100) for alias, places in line)
