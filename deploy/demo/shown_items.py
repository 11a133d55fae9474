"""The simulated shop's items as the page shows them: a title, a category and a price for each."""

from collections.abc import Iterable, Iterator
from zlib import crc32

from schemas.messages.item import Item


def shown_items(names: Iterable[str]) -> Iterator[Item]:
    """One for each item id, which is a category and a number."""
    for name in names:
        category, _, number = name.rpartition("-")
        title = f"{category.replace('-', ' ').capitalize()} {int(number)}"
        price = 9 + crc32(category.encode()) % 140 + crc32(name.encode()) % 50
        yield Item(item_id=name, categories=(category,), attributes={"title": title, "price": f"{price}.90 €"})
