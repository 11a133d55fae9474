"""Several families as one model: its settings, and its scores."""

import pytest
import torch

from trainer.errors import TrainingSettingsError
from trainer.models.gru4rec import Weights
from trainer.models.mixed import MixedSettings, initial_mixed, joined, split
from trainer.models.settings import Gru4RecSettings, TrainingSettings, flattened
from trainer.models.unrolled import unrolled
from trainer.models.window import WindowNetwork

FAMILY = "gru4rec+sasrec+caser"
SIZES = {
    "window": 6, "gru4rec.hidden_size": 5, "gru4rec.members": 2, "sasrec.hidden_size": 4, "caser.hidden_size": 3,
}  # fmt: skip


def settings(**changed: object) -> MixedSettings:
    return MixedSettings.parse({"family": FAMILY, **SIZES, **changed})


def test_each_family_has_a_table_and_what_is_one_for_all_is_handed_down() -> None:
    told = ["family= GRU4Rec + sr_gnn", "seed=7", "memory=none", "window=9", "sr-gnn.dropout=0.3", "gru4rec.epochs=2"]
    found = MixedSettings.from_assignments(told)
    assert found.family == "gru4rec+sr-gnn"
    gru, graph = found.parts["gru4rec"], found.parts["sr_gnn"]
    assert (gru.family, gru.epochs, gru.seed, gru.memory) == ("gru4rec", 2, 7, ())
    assert graph.model_dump().items() >= {"family": "sr-gnn", "dropout": 0.3, "window": 9, "weight": 1.0}.items()
    changed = found.changed(lambda part: {"epochs": part.epochs + 1})
    assert [part.epochs for part in changed.parts.values()] == [3, 11]


def test_settings_survive_their_own_record() -> None:
    found = settings(**{"sasrec.weight": 0.5, "caser.loss": "bpr-max"})
    assert TrainingSettings.parse(found.model_dump()) == found
    assert TrainingSettings.parse(flattened(found.model_dump())) == found
    # A name with a dot comes on top of a table.
    assert TrainingSettings.parse({**found.model_dump(), "sasrec.weight": 2}) == settings(
        **{"sasrec.weight": 2, "caser.loss": "bpr-max"}
    )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"family": "gru4rec+gru4rec"}, "name each once; for 2 of gru4rec set members=2"),
        ({"family": "sr-gnn+gru4rec+sr_gnn"}, r"for 2 of sr-gnn set sr_gnn\.members=2"),
        ({"family": "gru4rec+s-pop"}, "s-pop counts, and only networks can be one model"),
        ({"family": "gru4rec+gru5rec"}, "none of this name; there are gru4rec, sasrec"),
        ({"family": "sasrec+"}, "none of this name"),
        ({"epochs": 3}, r"unknown training setting .epochs. of family=gru4rec.* \(known: .*gru4rec, sasrec, caser\)"),
        ({"gru4rec.heads": 3}, r"unknown training setting .gru4rec\.heads. of family=gru4rec \(known: .*deep_input"),
        ({"memory": "none", "memory.x": 3}, r"unknown training setting 'memory\.x'"),
        ({"sasrec.window": 3}, r"sasrec\.window: is one for all families; set window"),
        ({"gru4rec.memory": "none"}, r"gru4rec\.memory: is one for all families; set memory"),
        ({"sasrec.heads": 3}, "hidden_size=4 cannot be shared between heads=3"),
        ({"sasrec": 3}, "sasrec=3"),
        ({"sasrec.weight": 0}, r"sasrec\.weight=0: .*greater than 0"),
        ({"gru4rec.hidden_size": 2048}, "4103 units of all members together are above 4096"),
    ],
)
def test_a_mistake_is_named(told: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingSettingsError, match=message):
        TrainingSettings.parse({"family": FAMILY, **(SIZES if "family" not in told else {}), **told})


def drawn(chosen: MixedSettings) -> WindowNetwork:
    whole = initial_mixed(20, chosen, torch.Generator().manual_seed(1))
    # Biases begin at 0; all of it is of families that learn one.
    return whole.with_tensors({**whole.tensors(), "output_bias": torch.linspace(-1, 1, 20)})


def test_the_whole_scores_the_weighted_sum_of_its_members() -> None:
    chosen = settings(**{"sasrec.weight": 0.5, "gru4rec.weight": 3, "gru4rec.embedding": "separate"})
    whole = drawn(chosen)
    assert (whole.family, whole.window, whole.query_size, whole.encoder.tied) == (FAMILY, 6, 5 + 5 + 4 + 3, False)
    members = split(whole, chosen)
    assert [member.family for member in members] == ["gru4rec", "gru4rec", "sasrec", "caser"]
    assert [isinstance(member, Weights) for member in members] == [True, True, False, False]
    items, length = torch.tensor([[3, 4, -1], [5, 6, 7]]), torch.tensor([2, 3])
    expected = torch.zeros(2, 20)
    of_gru = chosen.parts["gru4rec"]
    assert isinstance(of_gru, Gru4RecSettings)
    for member, weight in zip(members, (3, 3, 0.5, 1), strict=True):
        alone = unrolled(member, of_gru, 6) if isinstance(member, Weights) else member
        assert isinstance(alone, WindowNetwork)
        expected += weight * alone.scores(alone.query(items, length))
    torch.testing.assert_close(whole.scores(whole.query(items, length)), expected)


def test_a_whole_comes_apart_and_together_again() -> None:
    chosen = settings(**{"sasrec.weight": 0.5, "gru4rec.weight": 3})
    whole = drawn(chosen)
    members = split(whole, chosen)
    again = joined(members, chosen)
    assert again.tensors().keys() == whole.tensors().keys()
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor)
    # A family that learns no bias could never unlearn one.
    of_sasrec = members[2]
    assert not of_sasrec.output_bias.any()
    assert isinstance(of_sasrec, WindowNetwork)
    assert of_sasrec.input is of_sasrec.output
