"""The follower of items and rules, on records that a test makes."""

import gc
import weakref
from typing import Any

import pytest

from schemas.messages.examples import ITEM, RULE
from schemas.messages.item import Item, encode_item
from schemas.messages.ranking import Applied
from schemas.messages.rule import encode_rule
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.serve.live_catalogue import CatalogueFollower, LiveCatalogue
from stream_app.serve.metrics import Metrics
from tests.unit.models import exact_model

MODEL = exact_model("v1", ("a", "b", "c"))


class Record:
    """As confluent-kafka's message."""

    def __init__(self, topic: str, offset: int, key: bytes | None, value: bytes | None) -> None:
        self._fields = {"topic": topic, "offset": offset, "key": key, "value": value}

    def __getattr__(self, name: str) -> Any:
        return lambda: self._fields[name]


def following(
    *, attributes: tuple[str, ...] = (), items: str | None = "items"
) -> tuple[CatalogueFollower, LiveCatalogue, Catalogue, Metrics]:
    catalogue, metrics = Catalogue(attributes=attributes), Metrics()
    live = LiveCatalogue(catalogue)
    follower = CatalogueFollower(
        consumer_config={},
        items_topic=items,
        rules_topic="rules",
        live=live,
        metrics=metrics,
        on_fatal=lambda _: None,
    )
    return follower, live, catalogue, metrics


def take_in(follower: CatalogueFollower, *records: Record) -> None:
    follower._take_in(list(records))


def item(item_id: str, offset: int, **fields: Any) -> Record:
    return Record("items", offset, item_id.encode(), encode_item(Item(item_id=item_id, **fields)))


def test_records_are_taken_in_together_and_rankings_tell_how_far() -> None:
    follower, live, catalogue, metrics = following(attributes=("brand",))
    assert live.offered(MODEL, {None}, 0).applied == Applied(-1, -1)
    take_in(follower, item("a", 0), item("b", 1), Record("rules", 0, RULE.rule_id.encode(), encode_rule(RULE)))
    offered = live.offered(MODEL, {None, "de"}, 0)
    assert offered.applied == Applied(1, 0)
    assert set(offered.by_market) == {None, "de"}
    assert offered.by_market[None].popular(3)[0] == [0, 1]
    assert catalogue.rules == {RULE.rule_id: RULE}
    take_in(follower, Record("items", 5, b"a", None), Record("rules", 7, RULE.rule_id.encode(), None))
    assert live.offered(MODEL, {None}, 0).by_market[None].popular(3)[0] == [1]
    assert live.offered(MODEL, {None}, 0).applied == Applied(5, 7)
    assert (metrics.items._value.get(), metrics.rules._value.get()) == (1, 0)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("items", 1, b"a", b"{"), "not-json"),
        (Record("items", 1, b"b", encode_item(ITEM)), "key-mismatch"),
        (Record("items", 1, b"\xff", None), "key-mismatch"),
        (Record("items", 1, b"b", b'{"item_id":"b","available_until":%d}' % 10**20), "wrong-type"),
        (Record("rules", 1, RULE.rule_id.encode(), encode_rule(RULE)), "bad-rule"),
    ],
)
def test_a_bad_record_is_counted_and_changes_nothing_but_the_offset(record: Record, reason: str) -> None:
    follower, live, catalogue, metrics = following()  # which keeps no attribute for the rule
    take_in(follower, item("a", 0))
    take_in(follower, record, item("b", 2))
    offered = live.offered(MODEL, {None}, 0)
    assert offered.by_market[None].popular(3)[0] == [0, 1]
    assert catalogue.rules == {}
    assert offered.applied is not None
    assert offered.applied.items == 2
    topic = record.topic()
    assert metrics.refused_records.labels(topic=topic, reason=reason)._value.get() == 1


def test_another_model_is_offered_its_own_items_prepared_or_not() -> None:
    follower, live, _, _ = following()
    take_in(follower, item("a", 0), item("x", 1))
    other = exact_model("v2", ("x", "y", "a"))
    assert live.offered(MODEL, {None}, 0).by_market[None].popular(3)[0] == [0]
    live.prepare(other, 0)
    take_in(follower, Record("items", 2, b"a", None))
    assert live.offered(MODEL, {None}, 0).by_market[None].popular(3)[0] == []
    assert live.offered(other, {None}, 0).by_market[None].popular(3)[0] == [0]
    assert live.offered(MODEL, {None}, 0).by_market[None].popular(3)[0] == []


def test_a_worker_waits_for_items_where_there_must_be_any() -> None:
    rule = Record("rules", 0, RULE.rule_id.encode(), encode_rule(RULE))
    follower, _, _, _ = following(attributes=("brand",))
    assert follower._missing() is not None  # nothing at all has come
    take_in(follower, rule)
    assert "holds no item; publish them with `stream-app items`" in (follower._missing() or "")
    take_in(follower, item("a", 0))
    assert follower._missing() is None
    follower, _, _, _ = following(attributes=("brand",), items=None)
    assert follower._missing() is None
    take_in(follower, rule)
    assert follower._missing() is None


@pytest.mark.parametrize("prepared", [True, False])
def test_what_is_known_of_a_model_goes_with_it_and_has_the_rules_of_diversity(prepared: bool) -> None:
    live, model = LiveCatalogue(Catalogue(), DiversityRules(max_per_category=2)), exact_model("v1", ("a", "b"))
    if prepared:
        live.prepare(model, 0)
    assert live.offered(model, {None}, 0).by_market[None].diversity is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_times_pass_without_a_record() -> None:
    follower, live, _, _ = following()
    take_in(follower, item("a", 0, available_until=10), item("b", 1, available_from=10))
    seen = [live.offered(MODEL, {None}, now).by_market[None].popular(3)[0] for now in (9, 10, 9)]
    assert seen == [[0], [1], [1]]  # a clock that is put back brings nothing back
