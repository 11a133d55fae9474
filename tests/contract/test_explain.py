"""What `stream-app explain` says a score is made of: the ranking's numbers, and those of the trained model's parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.bundle.files import open_bundle
from schemas.bundle.manifest import RANK
from schemas.bundle.terms import Terms
from schemas.messages.click import Click
from stream_app.core.explain import Explained, explain
from stream_app.core.plan import SourcedClick
from stream_app.core.ranked import RankedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from tests.unit.trainer.builders import random_sessions
from trainer.data.sessions import SessionSet
from trainer.export.bundle import save_bundle
from trainer.export.shortlist_catalogue import LEAST_ITEMS
from trainer.memory.terms import NO_MEMORY, SCALES, RepeatTerm, SessionMemory, TableTerm, remember
from trainer.memory.trained import TrainedModel
from trainer.models.base import SessionModel
from trainer.models.settings import LearnedSettings, TrainingSettings
from trainer.training.fit import fit
from trainer.training.networks import initial_network
from trainer.training.train import tables_of

ITEMS = 60
RULES = SessionRules()
SESSION = ("i3", "i4", "nowhere", "i9", "i4", "i5")


def memory_of(sessions: SessionSet, settings: TrainingSettings) -> SessionMemory:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) - 0.3

    tables = tables_of(sessions, settings)
    return SessionMemory(
        RepeatTerm(place=drawn(7), count=drawn(), score=drawn(), length=drawn()),
        TableTerm(tables["cooccurrence"], drawn(8, len(SCALES))),
        TableTerm(tables["transitions"], drawn(1, len(SCALES))),
    )


def model_of(family: str, items: int) -> tuple[TrainedModel, SessionSet]:
    """With a memory of weights as they come, and nothing learned: only the arithmetic matters."""
    sessions = random_sessions(300, min(items, 400), seed=1)
    sessions = replace(sessions, item_ids=tuple(f"i{item}" for item in range(items)))
    small = {"hidden_size": 8, "window": 7} if family == "sasrec" else {}  # test_families traces such a graph as well
    settings = TrainingSettings.parse({"family": family, "memory": "all", **small})
    weights: SessionModel = (
        initial_network(items, settings, torch.Generator().manual_seed(1))
        if isinstance(settings, LearnedSettings)
        else fit(sessions, settings).weights
    )
    memory = memory_of(sessions, settings)
    return TrainedModel(weights=weights, item_ids=sessions.item_ids, settings=settings, memory=memory), sessions


def terms_of(folder: Path, model: TrainedModel, sessions: SessionSet) -> Terms:
    bundle = save_bundle(folder, "v1", model, popularity=sessions.support(), training={}, metrics={}, created_at=0)
    return Terms.of(open_bundle(bundle), (bundle / RANK).read_bytes())


def answered(terms: Terms, session: tuple[str, ...] = SESSION) -> tuple[SessionState, RankedClick]:
    """The row and the last ranking, as a worker makes them click by click."""
    rows: dict[str, SessionState] = {}
    for offset, item_id in enumerate(session):
        done = recommend(rows, [SourcedClick(Click("s", item_id, offset), offset)], terms.model, RULES)
        rows = done.rows
    return rows["s"], done.ranked[-1]


def explained(terms: Terms, row: SessionState, items: list[int] | None = None) -> list[Explained]:
    without = {term: terms.without(term) for term in terms.names}
    return explain(row, terms.without(), terms.without(*terms.names), without, items=items, listed=20)


@pytest.mark.parametrize("family", ["gru4rec", "sasrec", "item-knn"])
def test_the_numbers_are_the_ranking_s_to_the_bit(family: str, tmp_path: Path) -> None:
    terms = terms_of(tmp_path, *model_of(family, ITEMS))
    row, ranked = answered(terms)
    told = explained(terms, row)
    assert [one.item_id for one in told] == [terms.model.vocabulary.items[item] for item in ranked.top_index[:20]]
    assert [one.score for one in told] == list(ranked.top_score[:20])
    assert [one.place for one in told] == list(range(1, 21))


@pytest.mark.parametrize("items", [ITEMS, LEAST_ITEMS])
def test_parts_are_those_of_the_trained_model(items: int, tmp_path: Path) -> None:
    """Of a large catalogue, too, whose graph ranks a shortlist: there as far as lists reach."""
    model, sessions = model_of("gru4rec", items)
    terms = terms_of(tmp_path, model, sessions)
    assert set(terms.names) == {"repeat", "cooccurrence", "transitions"}
    row, _ = answered(terms)
    assert row.hidden is not None
    z = model.weights.scores(torch.from_numpy(row.hidden[-1:].astype(np.float32)))
    recent = torch.tensor([[5, 4, 9, 3] + [-1] * 26])
    inputs = recent, torch.tensor([[1.0, 2.0, 1.0, 1.0] + [0.0] * 26]), torch.tensor([6.0])
    memory = model.memory
    ablated = {
        "repeat": replace(memory, repeat=None),
        "cooccurrence": replace(memory, cooccurrence=None),
        "transitions": replace(memory, transitions=None),
    }
    scores = {name: remember(part, z, *inputs)[0].numpy() for name, part in ablated.items()}
    whole, network = (remember(part, z, *inputs)[0].numpy() for part in (memory, NO_MEMORY))
    told = explained(terms, row)
    differences, compared = 0, 0
    for one in told:
        item = int(one.item_id[1:])
        assert one.score == pytest.approx(whole[item], abs=1e-4)
        assert one.network == pytest.approx(network[item], abs=1e-4) or (one.network is None and items > ITEMS)
        for term, part in one.terms.items():
            if part.adds is None:
                assert items > ITEMS
                continue
            compared += 1
            differences += abs(part.adds) > 1e-3
            assert part.adds == pytest.approx(whole[item] - scores[term][item], abs=2e-4)
            assert part.place_without is not None
            assert part.place_without == pytest.approx(1 + (scores[term] > scores[term][item]).sum(), abs=1)
    assert compared > 30
    assert differences > 5


def test_what_a_click_adds_is_what_is_missing_without_it(tmp_path: Path) -> None:
    model, sessions = model_of("gru4rec", ITEMS)
    terms = terms_of(tmp_path, model, sessions)
    row, _ = answered(terms)
    [one] = explained(terms, row, items=[7])
    assert list(one.recent) == ["i5", "i4", "i9", "nowhere", "i3"]
    [whole] = explained(terms, row, items=[7])
    for left_out, session in {"i4": ("i3", "nowhere", "i9", "i5"), "i5": SESSION[:-1]}.items():
        other, _ = answered(terms, session)
        [without] = explained(terms, other, items=[7])
        assert whole.score is not None
        assert without.score is not None
        assert one.recent[left_out].adds == whole.score - without.score
        assert one.recent[left_out].place_without == without.place
    # An item that the model does not know adds to the session's length alone.
    assert one.recent["nowhere"].adds is not None
    support = sessions.support()
    assert one.clicks == support[7]
    assert one.popularity_place == 1 + (support > support[7]).sum() + (support[:7] == support[7]).sum()


def test_a_session_of_which_nothing_is_known_has_nothing_to_explain(tmp_path: Path) -> None:
    terms = terms_of(tmp_path, *model_of("gru4rec", ITEMS))
    row, _ = answered(terms, ("nowhere",))
    assert explained(terms, row) == []
