"""Items as the page shows them: what the topic of items says, the most clicked first; without it, what was clicked."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from schemas.messages.item import Item, decode_item
from schemas.messages.refused import RecordRefusedError

MOST_ITEMS: Final = 20_000
"""Of a larger catalogue the first ones that are read are kept: the page shows a shop, it is none."""
MOST_SHOWN: Final = 200


class ShownItem(msgspec.Struct, omit_defaults=True):
    """An item, as far as it is known."""

    item_id: str
    title: str | None = None
    image: str | None = None
    price: str | None = None
    categories: tuple[str, ...] = ()
    available: bool = True


class Shelf:
    """The newest record of each item. Filled by the thread that reads, asked by others.

    Args:
        image_origins: images that lie elsewhere are left out: a browser would ask there, and tell who looks.
        warn: told of records that are no item.
    """

    def __init__(self, image_origins: Collection[str], warn: Callable[[str], None]) -> None:
        self._allowed = ("data:image/", "/", *(f"{origin}/" for origin in image_origins))
        self._warn = warn
        self._items: dict[bytes, Item] = {}
        self._lock = threading.Lock()

    def put(self, key: bytes | None, value: bytes | None) -> None:
        """A record of the items topic; one that no worker would take is told and passed over."""
        if key is None:
            return
        try:
            item = None if value is None else decode_item(key, value)
        except RecordRefusedError as error:
            self._warn(str(error))
            return
        with self._lock:
            if item is None:
                self._items.pop(key, None)
            elif key in self._items or len(self._items) < MOST_ITEMS:
                self._items[key] = item

    def named(self, item_ids: Iterable[str], now_ms: int) -> list[ShownItem]:
        """These, in this order. One that a whole catalogue does not have is not available."""
        with self._lock:
            found = [(item_id, self._items.get(item_id.encode())) for item_id in item_ids]
            is_whole = 0 < len(self._items) < MOST_ITEMS
        return [
            ShownItem(item_id, available=not is_whole) if item is None else self._shown(item, now_ms)
            for item_id, item in found
        ]

    def offered(self, text: str, now_ms: int, *, clicked: Mapping[str, float]) -> list[ShownItem]:
        """What is available now and has the text in its id, title or a category, the most clicked first."""
        with self._lock:
            items = list(self._items.values())
        sought = text.casefold()
        if not items:
            return [ShownItem(item_id) for item_id in clicked if sought in item_id.casefold()][:MOST_SHOWN]
        found = [item for item in items if _is_available(item, now_ms) and sought in _text(item)]
        found.sort(key=lambda item: (-clicked.get(item.item_id, 0.0), item.item_id))
        return [self._shown(item, now_ms) for item in found[:MOST_SHOWN]]

    def _shown(self, item: Item, now_ms: int) -> ShownItem:
        image = _attribute(item, "image")
        return ShownItem(
            item.item_id,
            title=_attribute(item, "title"),
            image=image if image is not None and self._may_be_shown(image) else None,
            price=_attribute(item, "price"),
            categories=item.categories,
            available=_is_available(item, now_ms),
        )

    def _may_be_shown(self, image: str) -> bool:
        # Browsers leave out tabs and line breaks: /<tab>/host is //host.
        return image.isprintable() and image.startswith(self._allowed) and not image.startswith(("//", "/\\"))


def _is_available(item: Item, now_ms: int) -> bool:
    """In some market: the page's clicks name none."""
    begun = item.available_from is None or item.available_from <= now_ms
    return item.available and begun and (item.available_until is None or now_ms < item.available_until)


def _attribute(item: Item, name: str) -> str | None:
    value: Any = item.attributes.get(name)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _text(item: Item) -> str:
    return " ".join((item.item_id, _attribute(item, "title") or "", *item.categories)).casefold()
