"""Rule: what a shop wants of its rankings beside the model, on the compacted topic `rules` under the rule's id."""

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from schemas.messages.click import Id, Milliseconds
from schemas.messages.refused import LATEST, RecordRefusedError, RefuseReason, check_text, check_times, decode_record

_Time = Annotated[Milliseconds, msgspec.Meta(ge=0, le=LATEST)]
_Texts = Annotated[tuple[Id, ...], msgspec.Meta(max_length=1000)]
MOST_BOOST: Final = 100.0
"""Either way."""
Scalar = str | int | float | bool


class RuleAction(StrEnum):
    """What becomes of the items that a rule matches."""

    EXCLUDE = "exclude"
    """They are not shown."""
    BOOST = "boost"
    """`boost` is added to their scores."""
    PIN = "pin"
    """They are put at `place` and the places behind it, in the order of the rule."""


class Match(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which items: those with one of the values of every field that is given."""

    items: Annotated[_Texts, msgspec.Meta(description="Item ids.")] = ()
    categories: Annotated[_Texts, msgspec.Meta(description="One of them is among the item's.")] = ()
    attributes: Annotated[
        dict[str, Annotated[tuple[Scalar, ...], msgspec.Meta(min_length=1, max_length=1000)]],
        msgspec.Meta(description="Values of attributes by name.", max_length=100),
    ] = {}


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The newest record of a rule counts; a tombstone ends it. Unknown fields are refused."""

    rule_id: Annotated[Id, msgspec.Meta(description="Equals the Kafka key; 1 to 256 bytes of UTF-8.")]
    action: RuleAction
    match: Match
    boost: (
        Annotated[
            float, msgspec.Meta(ge=-MOST_BOOST, le=MOST_BOOST, description="Of `boost`: what is added to the scores.")
        ]
        | None
    ) = None
    place: Annotated[int, msgspec.Meta(ge=1, le=1000, description="Of `pin`: 1 is the first place.")] | None = None
    markets: (
        Annotated[_Texts, msgspec.Meta(description="Rankings of these markets alone; of all without this field.")]
        | None
    ) = None
    begin: Annotated[_Time, msgspec.Meta(description="First moment, milliseconds since the epoch.")] | None = (
        msgspec.field(default=None, name="from")
    )
    until: Annotated[_Time, msgspec.Meta(description="First moment at which it does not count any more.")] | None = None


_decoder: Final = msgspec.json.Decoder(Rule)
_encoder: Final = msgspec.json.Encoder()


def decode_rule(key: bytes | None, value: bytes) -> Rule:
    """The rule in a record that is no tombstone. Raises RecordRefusedError."""
    rule = decode_record(key, value, _decoder, "rule_id")
    match = rule.match
    for what, texts in (("a market", rule.markets or ()), ("an item", match.items), ("a category", match.categories)):
        for text in texts:
            check_text(what, text)
    check_times(rule.begin, rule.until, ("from", "until"))
    if problem := _problem(rule):
        raise RecordRefusedError(RefuseReason.BAD_RULE, problem)
    return rule


def encode_rule(rule: Rule) -> bytes:
    """The JSON value of a rule; its Kafka key is `rule.rule_id.encode()`."""
    return _encoder.encode(rule)


def _problem(rule: Rule) -> str | None:
    match, action = rule.match, rule.action
    if not (match.items or match.categories or match.attributes):
        return "match names nothing: give it items, categories or attributes"
    for field, value, of in (("boost", rule.boost, RuleAction.BOOST), ("place", rule.place, RuleAction.PIN)):
        if (value is not None) != (action == of):
            return f"{action} {'needs' if action == of else 'takes no'} {field}"
    if action == RuleAction.PIN and (match.categories or match.attributes):
        return "pin takes match.items alone, in the order in which they are to be shown"
    return None
