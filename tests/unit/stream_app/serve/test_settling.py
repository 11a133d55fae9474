"""What a chunk puts on the rankings topic, and in which order."""

import pytest
from faust.types import TP

from schemas.messages.click import Click
from schemas.messages.ranking import decode_ranking
from stream_app.core.plan import SourcedClick, SourcedForget
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.serve.serving import Serves
from stream_app.serve.settling import answers
from tests.unit.models import exact_model

MODEL = exact_model("v1", ("a", "b", "c"))


@pytest.mark.parametrize("cut", range(8))
def test_the_mark_of_a_forgotten_session_stands_between_what_was_and_what_begins_anew(cut: int) -> None:
    """Wherever a chunk ends: else a reader would go on from a ranking that is to be forgotten."""
    told: list[tuple[str, int | None]] = [
        ("s", 0), ("t", 1), ("s", None), ("s", 3), ("s", None), ("nobody", None), ("t", 6), ("s", 7),
    ]  # fmt: skip
    chunk: list[SourcedClick | SourcedForget] = [
        SourcedForget(session, offset) if click is None else SourcedClick(Click(session, "a", 1_000 + offset), offset)
        for offset, (session, click) in enumerate(told)
    ]
    rows: dict[str, SessionState] = {}
    found: list[tuple[str, int | None]] = []
    for part in (chunk[:cut], chunk[cut:]):
        done = recommend(rows, part, MODEL, SessionRules())
        rows |= done.rows
        for key, value in answers(done, TP("clicks", 0), Serves(MODEL), 0):
            assert key is not None
            found.append((key.decode(), None if value is None else decode_ranking(value).source.offset))
    assert found == told
