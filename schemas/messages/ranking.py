"""Ranking: the answer to one click, on the `rankings` topic under the session's key."""

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from schemas.errors import MessageError
from schemas.messages.click import Id, Moment
from schemas.messages.source import OffsetOrNone, Source


class RankingReason(StrEnum):
    """What a ranking was computed from."""

    MODEL = "model"
    """The session's hidden state after this click."""
    UNKNOWN_ITEM = "unknown-item"
    """The model does not know the clicked item: the session's hidden state as it was before this click."""
    POPULARITY = "popularity"
    """The session has no hidden state, none of its items is known: the most popular items."""
    NOT_FINITE = "not-finite"
    """The model answers this click with numbers that are not finite: the most popular items."""


class Diversified(StrEnum):
    """What made a list another than that of the highest scores."""

    CATEGORY_CAP = "category-cap"
    """An item of the highest scores was passed over, as the list held enough of a category of it."""
    MMR = "mmr"
    """Items were chosen by how unlike the others of the list they are as well; scores may rise from place to place."""


class RankedItem(msgspec.Struct, frozen=True, gc=False):
    """One item of a ranking. Scores compare within one ranking only."""

    item_id: Id
    score: float


class Applied(msgspec.Struct, frozen=True, gc=False):
    """How far the worker had read what it ranked by: offsets of the newest records, -1 before the first."""

    items: OffsetOrNone
    rules: OffsetOrNone


class Ranking(msgspec.Struct, frozen=True, omit_defaults=True):
    """The items most likely clicked next, best first.

    Optional fields that are not set are left out of the JSON. After a crash a ranking can be published twice; both have
    the same `source`, by which consumers drop duplicates.
    """

    session_id: Id
    event_id: Id | None
    item_id: Annotated[Id, msgspec.Meta(description="The item of the click that this ranking answers.")]
    model_version: str
    items: Annotated[tuple[RankedItem, ...], msgspec.Meta(description="Best first.")]
    source: Annotated[Source, msgspec.Meta(description="Where the click lies; the identity of this ranking.")]
    click_timestamp: Moment
    produced_at: Moment
    reason: RankingReason
    rules: Annotated[
        tuple[Id, ...],
        msgspec.Meta(description="Rules that put an item into this list, or raised or lowered one of it."),
    ] = ()
    applied: Annotated[Applied, msgspec.Meta(description="State of `items` and `rules` that it keeps to.")] | None = (
        None
    )
    diversity: Annotated[
        tuple[Diversified, ...],
        msgspec.Meta(description="What made this list another than that of the highest scores."),
    ] = ()
    type: Annotated[str | None, msgspec.Meta(description="The click's own type; without one it is a `view`.")] = None
    market: Annotated[str | None, msgspec.Meta(description="The click's own market.")] = None
    variant: Annotated[str | None, msgspec.Meta(description="The variant of an experiment that ranked.")] = None
    follows: Annotated[
        OffsetOrNone | None,
        msgspec.Meta(description="Of a shadow: offset of the session's click before this one, -1 without."),
    ] = None


_decoder: Final = msgspec.json.Decoder(Ranking)
_encoder: Final = msgspec.json.Encoder()
_NO_SCORE: Final = b'"score":null'  # in no text: JSON escapes its quotes


def encode_ranking(ranking: Ranking) -> bytes:
    """The JSON value of a ranking; its Kafka key is `ranking.session_id.encode()`.

    Raises MessageError for a score that is not finite, which JSON would show as null.
    """
    value = _encoder.encode(ranking)
    if _NO_SCORE in value:
        raise MessageError(f"a ranking by {ranking.model_version} holds a score that is not a finite number")
    return value


def decode_ranking(value: bytes) -> Ranking:
    """Inverse of `encode_ranking`. Raises MessageError."""
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a ranking: {error}") from error
