"""Which ranking of a session is its latest: however a topic is cut into batches, and wherever a reader begins again."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from schemas.messages.examples import RANKING
from schemas.messages.ranking import encode_ranking
from stream_app.api.latest import Latest, decode_row, encode_row, newest, of_value, value_of

FORGOTTEN = Latest(-1, -1, 0, b"", anew=True)


def told(offset: int | None, at: int) -> Latest:
    """The record at a place of the topic; None marks a forgotten session."""
    return FORGOTTEN if offset is None else Latest(0, offset, at, f"{offset} at {at}".encode())


def apply(stored: Latest | None, batch: Sequence[Latest]) -> Latest | None:
    """As the stores do it."""
    for latest in newest((b"s", one) for one in batch).values():
        if latest.replaces(stored):
            stored = None if latest.is_forgotten else latest
    return stored


records = st.lists(st.one_of(st.none(), st.integers(0, 6)), max_size=12).map(
    lambda offsets: [told(offset, at) for at, offset in enumerate(offsets)]
)


@given(records, st.data())
def test_batches_of_any_size_come_to_the_same(topic: list[Latest], data: st.DataObject) -> None:
    one_by_one: Latest | None = None
    for record in topic:
        one_by_one = apply(one_by_one, [record])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(topic)), max_size=4)))
    stored: Latest | None = None
    for begin, end in zip([0, *cuts], [*cuts, len(topic)], strict=True):
        stored = apply(stored, topic[begin:end])
    assert (stored and stored.value) == (one_by_one and one_by_one.value)


def test_a_repetition_replaces_nothing_and_a_forgotten_session_begins_anew() -> None:
    assert apply(told(5, 0), [told(3, 1), told(5, 2)]) == told(5, 0)
    assert apply(told(5, 0), [FORGOTTEN]) is None
    found = apply(told(5, 0), [FORGOTTEN, told(3, 1)])
    assert found is not None
    assert found.value == b"3 at 1"


def test_a_row_holds_the_record_as_it_is_until_it_expires() -> None:
    value = encode_ranking(RANKING)
    latest = of_value(value, at_ms=1_000)
    assert latest == Latest(RANKING.source.partition, RANKING.source.offset, 1_000, value)
    row = encode_row(latest)
    assert decode_row(row) == latest
    assert (value_of(row, since_ms=1_000), value_of(row, since_ms=1_001)) == (value, None)
    assert of_value(b'{"source": {"partition": "x"}}') is None
