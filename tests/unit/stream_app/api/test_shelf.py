"""What the page shows of the items."""

import json

from schemas.messages.item import Item, encode_item
from stream_app.api.shelf import MOST_ITEMS, Shelf

NOW = 1_767_225_600_000


def shelf(*items: Item, origins: tuple[str, ...] = ()) -> tuple[Shelf, list[str]]:
    warned: list[str] = []
    found = Shelf(origins, warned.append)
    for item in items:
        found.put(item.item_id.encode(), encode_item(item))
    return found, warned


def offered(found: Shelf, text: str = "", **clicked: float) -> list[str]:
    return [item.item_id for item in found.offered(text, NOW, clicked=clicked)]


def test_what_is_available_is_offered_the_most_clicked_first() -> None:
    found, _ = shelf(
        Item(item_id="a"),
        Item(item_id="b", categories=("lens",), attributes={"title": "A 50 mm"}),
        Item(item_id="c", available=False),
        Item(item_id="d", available_from=NOW + 1),
        Item(item_id="e", available_until=NOW),
    )
    assert offered(found) == ["a", "b"]
    assert offered(found, b=0.5) == ["b", "a"]
    assert offered(found, "LENS") == offered(found, "50 MM") == ["b"]
    found.put(b"a", None)
    assert offered(found) == ["b"]
    assert [(item.item_id, item.available) for item in found.named(["a", "b", "c"], NOW)] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]


def test_without_a_catalogue_it_is_what_was_clicked() -> None:
    found, _ = shelf()
    assert offered(found, "x", x1=0.7, y1=0.2, x2=0.1) == ["x1", "x2"]
    assert found.named(["x1"], NOW)[0].available


def test_images_from_elsewhere_are_shown_only_where_they_may() -> None:
    images = [
        "data:image/png;base64,AA",
        "/own.png",
        "//evil.example/a.png",
        "https://images.example/a.png",
        "data:text/html,",
        "/\t/evil.example/a.png",
        "/\n\\evil.example/a.png",
    ]
    items = [Item(item_id=str(n), attributes={"image": image}) for n, image in enumerate(images)]
    for origins, shown in (((), {0, 1}), (("https://images.example",), {0, 1, 3})):
        found, _ = shelf(*items, origins=origins)
        told = found.named(map(str, range(len(images))), NOW)
        assert {n for n, item in enumerate(told) if item.image is not None} == shown


def test_a_record_that_is_no_item_is_told_and_a_large_catalogue_cut() -> None:
    found, warned = shelf()
    found.put(b"a", b"{}")
    found.put(None, b"{}")
    assert len(warned) == 1
    for n in range(MOST_ITEMS + 5):
        found.put(f"{n}".encode(), json.dumps({"item_id": f"{n}"}).encode())
    assert len(found._items) == MOST_ITEMS
    assert found.named([str(MOST_ITEMS + 1)], NOW)[0].available  # it may be one of those that were left out
