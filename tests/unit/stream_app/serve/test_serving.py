"""Who ranks for whom."""

from collections import Counter

import pytest

from schemas.messages.click import Click
from schemas.messages.split import PLACES
from stream_app.core.plan import SourcedClick, SourcedForget
from stream_app.serve.serving import Records, Serves, Serving, place_of
from tests.unit.models import exact_model

FIRST, SECOND = (Serves(exact_model(version, ("a",)), version) for version in ("v1", "v2"))


@pytest.mark.parametrize(
    ("session_id", "murmur2"),
    [
        # The vectors of Kafka's own tests (UtilsTest.testMurmur2).
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_places_are_those_of_javas_hash(session_id: str, murmur2: int) -> None:
    assert place_of(session_id, "") == (murmur2 & 0x7FFFFFFF) % PLACES
    assert place_of(session_id[2:], session_id[:2]) == place_of(session_id, "")


def test_shares_are_as_asked_for_and_another_salt_draws_anew() -> None:
    places = {salt: [place_of(f"session-{n}", salt) for n in range(20_000)] for salt in ("", "1")}
    tenth = {salt: {n for n, place in enumerate(found) if place < PLACES // 10} for salt, found in places.items()}
    assert all(1_800 < len(sessions) < 2_200 for sessions in tenth.values())
    assert 100 < len(tenth[""] & tenth["1"]) < 300  # a hundredth, as of two coins


def test_a_batch_is_divided_by_session_and_a_variant_without_a_model_is_the_first_ones() -> None:
    def click(session_id: str, offset: int) -> SourcedClick:
        return SourcedClick(Click(session_id, "a", 0), offset)

    sessions = [f"s{n}" for n in range(60)]
    serving = Serving((FIRST, SECOND), (PLACES // 2, 3 * PLACES // 4, PLACES), (0, 1, None))
    batch: list[Records] = [
        [click(session_id, n) for n, session_id in enumerate(sessions * 2)],
        [SourcedForget(session_id, n) for n, session_id in enumerate(sessions)],
    ]
    divided, without = serving.divided(batch)
    owners: dict[str, str | None] = {}
    for serves, parts in divided:
        for records in parts:
            offsets = [one.offset for one in records]
            assert offsets == sorted(offsets)
            for one in records:
                session_id = one.session_id if isinstance(one, SourcedForget) else one.click.session_id
                assert owners.setdefault(session_id, serves.variant) == serves.variant
    assert sum(len(records) for _, parts in divided for records in parts) == 180
    by_place = {name: place_of(name, "") * 4 // PLACES for name in sessions}
    assert owners == {name: "v2" if quarter == 2 else "v1" for name, quarter in by_place.items()}
    assert without == 3 * Counter(by_place.values())[3] > 0


def test_a_variant_that_nobody_of_a_batch_belongs_to_is_not_asked() -> None:
    serving = Serving((FIRST, SECOND), (PLACES - 1, PLACES), (0, 1))
    assert serving.divided([[]]) == ([(FIRST, [[]])], 0)
