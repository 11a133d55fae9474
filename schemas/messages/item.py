"""Item: what a shop says of one of its items, on the compacted topic `items` under the item's id."""

from typing import Annotated, Any, Final

import msgspec

from schemas.messages.click import Id, Milliseconds
from schemas.messages.refused import LATEST, check_text, check_times, decode_record

_Time = Annotated[Milliseconds, msgspec.Meta(ge=0, le=LATEST)]
_Texts = Annotated[tuple[Id, ...], msgspec.Meta(max_length=1000)]


class Item(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The newest record of an item counts; a tombstone says that the item is gone. Unknown fields are refused."""

    item_id: Annotated[Id, msgspec.Meta(description="Equals the Kafka key; 1 to 256 bytes of UTF-8.")]
    available: Annotated[bool, msgspec.Meta(description="Whether it may be shown at all.")] = True
    available_from: Annotated[_Time, msgspec.Meta(description="First moment, milliseconds since the epoch.")] | None = (
        None
    )
    available_until: (
        Annotated[_Time, msgspec.Meta(description="First moment at which it may not be shown any more.")] | None
    ) = None
    markets: (
        Annotated[_Texts, msgspec.Meta(description="Where it may be shown; everywhere without this field.")] | None
    ) = None
    categories: Annotated[
        _Texts,
        msgspec.Meta(
            description="What rules may match, and what a list may hold only so many of; compared as they are."
        ),
    ] = ()
    created_at: Annotated[_Time, msgspec.Meta(description="When the shop took it in.")] | None = None
    attributes: Annotated[
        dict[str, Any], msgspec.Meta(description="Whatever else there is: title, image, price.", max_length=1000)
    ] = {}


_decoder: Final = msgspec.json.Decoder(Item)
_encoder: Final = msgspec.json.Encoder()


def decode_item(key: bytes | None, value: bytes) -> Item:
    """The item in a record that is no tombstone. Raises RecordRefusedError."""
    item = decode_record(key, value, _decoder, "item_id")
    for category in item.categories:
        check_text("a category", category)
    for market in item.markets or ():
        check_text("a market", market)
    check_times(item.available_from, item.available_until, ("available_from", "available_until"))
    return item


def encode_item(item: Item) -> bytes:
    """The JSON value of an item; its Kafka key is `item.item_id.encode()`."""
    return _encoder.encode(item)
