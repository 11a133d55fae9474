"""Whatever the bytes are, a decoder gives a value that can be written again, or its own error: nothing else, ever.

What is drawn is an example of the message with something else in some of its places, or with damaged bytes: bytes that
are drawn from nowhere come past the first brace only seldom. `make fuzz TEST=tests/unit/test_decoders.py` tries more.
"""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.bundle.files import _popularity
from schemas.bundle.golden import check_golden, decode_golden, encode_golden
from schemas.bundle.manifest import BundleLimits, decode_manifest, encode_manifest
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import AnnouncementError, BundleError, MessageError, VocabularyError
from schemas.messages import examples
from schemas.messages.announcement import decode_announcement, encode_announcement
from schemas.messages.click import OWN_KEY, ClickLimits, ClickRejectedError, decode_click, encode_click
from schemas.messages.forget import Forget, decode_forget, encode_forget
from schemas.messages.item import decode_item, encode_item
from schemas.messages.ranking import decode_ranking, encode_ranking
from schemas.messages.refused import RecordRefusedError
from schemas.messages.rejected import decode_rejected, encode_rejected
from schemas.messages.rule import decode_rule, encode_rule
from schemas.messages.score import decode_score, encode_score, totals_by_model
from schemas.messages.split import PLACES, decode_split, encode_split
from stream_app.api.board import Board
from stream_app.api.latest import decode_row, encode_row, of_value
from stream_app.api.shelf import Shelf
from stream_app.api.traffic import Traffic
from stream_app.core import scoring
from stream_app.core.catalogue import Catalogue
from stream_app.core.offer import Offers
from stream_app.errors import RowError
from stream_app.tools.scores import as_json, lines
from tests.contract.tiny_model import TinyModel
from tests.unit.models import exact_model
from trainer.service.split import moved
from trainer.service.split import told as told_split

NOW = 1_767_225_600_000
LIMITS = ClickLimits()
MANIFEST = {
    "format_version": 2, "version": "v1", "created_at": NOW, "family": "gru4rec", "encoder": "recurrent", "layers": 1,
    "hidden_size": 4, "query_size": 4, "window": 0, "catalogue_size": 12, "k": 5, "recent_size": 6,
    "training": {"window": [1, 2.5]}, "metrics": {"model": {"mrr@20": 0.25}}, "git_revision": "abc", "states_of": None,
    "files": {
        name: {"sha256": "0" * 64, "size": 17}
        for name in ("advance.onnx", "rank.onnx", "vocabulary.json", "popularity.npy", "golden.json")
    },
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A message, and who reads it.

    Attributes:
        read: from bytes; what it raises beside `error` is a fault, and so is what `used` raises.
        write: the bytes of what was read, which lead to the same again; None where nobody writes it.
        used: what becomes of the value in programs that read it.
    """

    example: bytes
    read: Callable[[bytes], Any]
    error: type[Exception]
    write: Callable[[Any], bytes] | None = None
    used: Callable[[Any], object] = id


def json_of(value: Any) -> bytes:
    return msgspec.json.encode(value)


def forget_of(value: bytes) -> Forget | None:
    try:
        key = json.loads(value)["session_id"].encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        key = b"s-1"
    return decode_forget(key, value)


def keyed(decode: Callable[[bytes | None, bytes], Any], name: str) -> Callable[[bytes], Any]:
    """A decoder of records whose key is their id, with whatever id there is."""

    def read(value: bytes) -> Any:
        try:
            key = json.loads(value)[name].encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            key = b"x"
        return decode(key, value)

    return read


def score_row(value: bytes) -> Any:
    """As the scorer keeps a ranking."""
    ranking = scoring.decode_ranking(value)
    counted = scoring.PartitionScores(0, scoring.ScoringRules())
    last = counted.apply(None, ranking, 0, counts=True)
    again = counted.apply(last, ranking, 1, counts=True)
    for score in counted.published(2):
        decode_score(encode_score(score))
    return {scoring.whose(ranking): again}


def show_scores(score: Any) -> object:
    """As the command, the API and the guard show them."""
    board = Board(lambda _: None)
    board.score(b"key", encode_score(score), now_ms=NOW)
    shown = [as_json(line, by) for by in ((), ("window",), ("type",)) for line in lines([score], by)]
    return json_of(shown), totals_by_model(board.scores())


def show_latest(latest: Any) -> object:
    """As the API keeps a ranking and shows what went through."""
    traffic = Traffic()
    traffic.take([(b"s", latest)], NOW)
    return json_of(traffic.series(NOW + 10_000)), json_of(traffic.recent(NOW + 4_000))


def show_item(item: Any) -> object:
    """As the page and the workers have it."""
    shelf, catalogue = Shelf((), lambda _: None), Catalogue(attributes=["brand", "price", "title"])
    shelf.put(item.item_id.encode(), encode_item(item))
    catalogue.put_items([(item.item_id, item)])
    return json_of(shelf.named([item.item_id], NOW)), json_of(shelf.offered("a", NOW, clicked={}))


def show_rule(rule: Any) -> object:
    """As the workers keep to it."""
    catalogue = Catalogue(attributes=list(rule.match.attributes))
    catalogue.put_items([(item_id, replace(examples.ITEM, item_id=item_id)) for item_id in ("a", "b")])
    catalogue.put_rule(rule.rule_id, rule)
    offers = Offers(exact_model("v1", ("a", "b", "c", "d", examples.ITEM.item_id)), catalogue, NOW)
    offers.refresh(NOW)
    return json_of([[*offers.of(market).popular(3), len(offers.of(market).pins)] for market in (None, "de")])


def show_split(split: Any) -> object:
    """As the commands show it, and end it."""
    return told_split(split), moved(split.variants, {"champion": PLACES})


def show_manifest(manifest: Any) -> object:
    """As a worker tells how old its model is."""
    return manifest.created_at / 1000


def golden_of(value: bytes) -> Any:
    golden = decode_golden(value)
    check_golden(golden, decode_manifest(json_of(MANIFEST), BundleLimits()), BundleLimits())
    return golden


RANKING = encode_ranking(examples.RANKING)
KINDS = {
    "click": Kind(
        encode_click(examples.CLICK),
        lambda value: decode_click(OWN_KEY, value, now_ms=NOW, limits=LIMITS),
        ClickRejectedError,
        encode_click,
    ),
    "forget": Kind(
        encode_forget(Forget("s-1", "forget")),
        forget_of,
        ClickRejectedError,
        lambda found: b"" if found is None else encode_forget(found),
    ),
    "ranking": Kind(RANKING, decode_ranking, MessageError, encode_ranking),
    "ranking as it is scored": Kind(
        RANKING,
        score_row,
        MessageError,
        None,
        lambda row: scoring.decode_row(scoring.encode_row(row)),
    ),
    "ranking as it is looked up": Kind(
        RANKING,
        lambda value: of_value(value, at_ms=NOW),
        MessageError,
        None,
        lambda latest: None if latest is None else (decode_row(encode_row(latest)), show_latest(latest)),
    ),
    "rejected click": Kind(encode_rejected(examples.REJECTED_CLICK), decode_rejected, MessageError, encode_rejected),
    "announcement": Kind(
        encode_announcement(examples.MODEL_ANNOUNCEMENT), decode_announcement, AnnouncementError, encode_announcement
    ),
    "item": Kind(encode_item(examples.ITEM), keyed(decode_item, "item_id"), RecordRefusedError, encode_item, show_item),
    "rule": Kind(encode_rule(examples.RULE), keyed(decode_rule, "rule_id"), RecordRefusedError, encode_rule, show_rule),
    "split": Kind(
        encode_split(examples.SPLIT), keyed(decode_split, "app_id"), RecordRefusedError, encode_split, show_split
    ),
    "score": Kind(encode_score(examples.SCORE), decode_score, MessageError, encode_score, show_scores),
    "manifest": Kind(
        json_of(MANIFEST),
        lambda value: decode_manifest(value, BundleLimits()),
        BundleError,
        encode_manifest,
        show_manifest,
    ),
    "golden pair": Kind(encode_golden(TinyModel().golden()), golden_of, BundleError, encode_golden),
    "vocabulary": Kind(
        json_of(["a", "b", 'c"', "d\\"]),
        lambda value: Vocabulary.from_json(value, most=4),
        VocabularyError,
        Vocabulary.to_json,
    ),
}

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40, -(10**400), 10**4299]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.5, -0.0, 1e308, -1e308, 5e-324, 1e17]),
    st.text(max_size=8),
    st.sampled_from(["", "\0", "a" * 257, "é" * 129, "\ud800", "\n", "1e400", "../..", "s3://u:p@h/x", "shadow:x"]),
    st.sampled_from([[], {}, [[]], [None], {"": {}}, [{}] * 3, {"a": [1]}, [[[[[[]]]]]]]),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything in a JSON value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, one in inner for place in places(one, (*path, name)))]


@st.composite
def changed(draw: st.DrawFn, example: bytes) -> bytes:
    """The example with up to three of its values replaced, removed or joined by another one."""
    value = json.loads(example)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            value = draw(ODD.map(copy.deepcopy)) if draw(st.integers(0, 9)) == 0 else value
            continue
        *way, last = path
        holder = value
        for name in way:
            holder = holder[name]
        action = draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
        if action == "replace":
            holder[last] = draw(ODD.map(copy.deepcopy))
        elif action == "remove":
            del holder[last]
        elif isinstance(holder, list):
            holder += copy.deepcopy(holder) * draw(st.integers(1, 4))
        else:
            holder[draw(st.text(max_size=4))] = draw(ODD.map(copy.deepcopy))
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, example: bytes) -> bytes:
    """The example with bytes that are replaced, left out or cut off."""
    content = bytearray(example)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4) | st.sampled_from([b'"', b"[" * 2000]))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_read(name: str) -> None:
    kind = KINDS[name]
    kind.used(kind.read(kind.example))


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_anything_is_read_or_refused(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    value = data.draw(changed(kind.example) | damaged(kind.example) | st.binary(max_size=60))
    try:
        read = kind.read(value)
    except kind.error as error:
        str(error).encode()  # can be printed
        return
    kind.used(read)
    if kind.write is not None and (again := kind.write(read)):
        assert kind.write(kind.read(again)) == again


# -- what is no JSON --------------------------------------------------------------------------------------------------


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@given(damaged(npy(np.arange(5))))
def test_any_popularity_is_read_or_refused(value: bytes) -> None:
    try:
        found = _popularity(value, 5)
    except BundleError:
        return
    assert found.shape == (5,)
    assert found.min() >= 0


@given(st.binary(max_size=60))
def test_any_row_of_a_store_is_read_or_refused(row: bytes) -> None:
    with contextlib.suppress(RowError):
        assert encode_row(decode_row(row)) == row
    with contextlib.suppress(RowError):
        found = scoring.decode_row(row)
        assert scoring.decode_row(scoring.encode_row(found)) == found
