"""Split: which model ranks for which share of the sessions, on the compacted topic `splits` under `worker.app_id`.

The hundred percent are a line. A session has its place on it by a hash of its id, and the variants lie along it in
order. To move the border between two of them moves the sessions beside that border to the other side, and no others.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Final, TypeGuard

import msgspec

from schemas.messages.click import Id
from schemas.messages.refused import RecordRefusedError, RefuseReason, decode_record

PLACES: Final = 10_000
"""Of the line: hundredths of a percent."""
SHADOW: Final = "shadow:"
"""What the variant of a shadow's ranking begins with, before its alias; no alias has a colon."""
MOST_PARTS: Final = 100
MOST_MODELS: Final = 8
"""Variants and shadows of one split, by their aliases: a worker holds a model of each."""

Alias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)")]


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the line, and whose it is."""

    alias: Annotated[Alias, msgspec.Meta(description="Alias of a model on the topic `models`.")]
    share: Annotated[float, msgspec.Meta(gt=0, le=100, description="Percent of the sessions, to two decimals.")]


class Split(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The newest record of an application counts; a tombstone ends it. Unknown fields are refused."""

    app_id: Annotated[Id, msgspec.Meta(description="Equals the Kafka key: `worker.app_id` of the workers.")]
    variants: Annotated[
        tuple[Variant, ...],
        msgspec.Meta(
            max_length=MOST_PARTS,
            description="In order; the shares add up to 100. An alias may have several parts. Without any, "
            "`worker.model_alias` serves all sessions.",
        ),
    ] = ()
    salt: Annotated[
        str,
        msgspec.Meta(max_length=256, description="Put before session ids: another one draws all sessions anew."),
    ] = ""
    shadow: Annotated[
        tuple[Alias, ...],
        msgspec.Meta(max_length=MOST_MODELS, description="Aliases of models that rank for `rankings.shadow` alone."),
    ] = ()


_decoder: Final = msgspec.json.Decoder(Split)
_encoder: Final = msgspec.json.Encoder()


def decode_split(key: bytes | None, value: bytes) -> Split:
    """The split in a record that is no tombstone. Raises RecordRefusedError."""
    split = decode_record(key, value, _decoder, "app_id")
    if problem := _problem(split):
        raise RecordRefusedError(RefuseReason.BAD_SPLIT, problem)
    return split


def encode_split(split: Split) -> bytes:
    """The JSON value of a split; its Kafka key is `split.app_id.encode()`.

    Raises RecordRefusedError rather than write what `decode_split` would refuse.
    """
    value = _encoder.encode(split)
    decode_split(split.app_id.encode(), value)
    return value


def is_shadow(variant: str | None) -> TypeGuard[str]:
    """Whether the variant of a ranking or a score is that of a shadow, which visitors saw nothing of."""
    return variant is not None and variant.startswith(SHADOW)


def places_of(variant: Variant) -> int:
    """How many places of the line a variant has."""
    return round(variant.share * 100)


def shares_of(variants: Sequence[Variant]) -> dict[str, int]:
    """Places of each alias, in the order of their first parts."""
    shares: Counter[str] = Counter()
    for variant in variants:
        shares[variant.alias] += places_of(variant)
    return dict(shares)


def _problem(split: Split) -> str | None:
    for variant in split.variants:
        if abs(variant.share * 100 - places_of(variant)) > 1e-6 or not places_of(variant):
            return f"the share {variant.share} of {variant.alias} has more than two decimals"
    total = sum(places_of(variant) for variant in split.variants)
    if split.variants and total != PLACES:
        return f"the shares of the variants add up to {total / 100:g}, and must add up to 100"
    aliases = [*shares_of(split.variants), *split.shadow]
    if twice := [alias for alias in split.shadow if aliases.count(alias) > 1]:
        return f"{twice[0]} is named as a shadow and once more"
    if (models := len(aliases)) > MOST_MODELS:
        return f"it names {models} aliases, {MOST_MODELS} are allowed: a worker holds a model of each"
    return None
