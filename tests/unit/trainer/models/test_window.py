import numpy as np
import pytest
import torch

from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.toy_window import Kind, ToySettings
from trainer.data.lanes import follow
from trainer.errors import TrainingSettingsError
from trainer.models.settings import TrainingSettings
from trainer.models.window import WindowNetwork, initial_windows, joined, split

KINDS: list[Kind] = ["tied", "causal", "untied"]


def network_of(kind: Kind, *, seed: int = 1, items: int = 20, members: int = 1) -> WindowNetwork:
    settings = ToySettings(kind=kind, members=members)
    return initial_windows(items, settings, torch.Generator().manual_seed(seed))


def same(a: WindowNetwork, b: WindowNetwork) -> bool:
    one, two = a.tensors(), b.tensors()
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_all_there_is(kind: Kind) -> None:
    network, other = network_of(kind), network_of(kind, seed=2)
    expected = {"output", "output_bias", "encoder.linear.weight", "encoder.linear.bias"}
    assert network.tensors().keys() == expected | ({"input"} if kind == "untied" else set())
    assert not same(network, other)
    found = other.with_tensors(network.tensors())
    assert same(found, network)
    assert (found.input is found.output) == (kind != "untied")
    items, length = torch.tensor([[3, 4, -1]]), torch.tensor([2])
    assert torch.equal(found.query(items, length), network.query(items, length))
    for name in network.tensors():
        with pytest.raises(KeyError, match=name):
            other.with_tensors({other: t for other, t in network.tensors().items() if other != name})


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_shares_nothing(kind: Kind) -> None:
    network = network_of(kind)
    before = {name: tensor.clone() for name, tensor in network.tensors().items()}
    for tensor in network.clone().tensors().values():
        tensor.fill_(7.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.tensors().items())


def test_the_generator_alone_decides_the_start() -> None:
    torch.manual_seed(1)
    first = network_of("untied")
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    assert same(network_of("untied"), first)
    assert torch.equal(torch.rand(3), expected)  # torch's own random numbers are where they were


def test_what_was_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        network = network_of("tied").clone()
    assert not any(parameter.is_inference() for parameter in network.encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [1, 2])
def test_queries_are_those_of_the_last_clicks(kind: Kind, members: int) -> None:
    network = network_of(kind, members=members)
    sessions = random_sessions(30, items=20, longest=14)
    seen = 0
    for lanes in follow(sessions):
        found = network.queries(None, lanes)
        assert found.shape == (len(lanes.position), network.query_size)
        for row, start, end in zip(found, lanes.start, lanes.position + 1, strict=True):
            last = sessions.items[max(start, end - network.window) : end]
            alone = network.query(torch.from_numpy(last)[None], torch.tensor([len(last)]))
            torch.testing.assert_close(row, alone[0])
            seen += 1
    assert seen == sessions.transitions


def test_a_window_of_one_click_is_refused_before_it_is_trained() -> None:
    with pytest.raises(TrainingSettingsError, match="window"):
        TrainingSettings.parse({"family": "sasrec", "window": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_members_are_summed(kind: Kind) -> None:
    members = [network_of(kind, seed=seed) for seed in (1, 2, 3)]
    for member in members:
        member.output_bias.normal_()
    whole = joined(members)
    items, length = torch.tensor([[3, 4, -1], [5, 6, 7]]), torch.tensor([2, 3])
    expected = torch.stack([member.scores(member.query(items, length)) for member in members]).sum(0)
    query = whole.query(items, length)
    torch.testing.assert_close(whole.scores(query), expected)
    torch.testing.assert_close(whole.scores(query), expected)
    assert whole.output.shape == (20, 3 * members[0].query_size)
    apart = split(whole)
    for member, found in zip(members, apart, strict=True):
        member.output_bias.copy_(found.output_bias)
        assert same(member, found)
    again = joined(apart)
    torch.testing.assert_close(again.output_bias, whole.output_bias)
    again.output_bias.copy_(whole.output_bias)
    assert same(again, whole)
    assert same(whole.with_tensors(whole.tensors()), whole)
    assert joined(members[:1]) is members[0]
    assert split(members[0]) == [members[0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [1, 2])
def test_the_size_is_told_before_there_is_a_network(kind: Kind, members: int) -> None:
    network = network_of(kind, members=members)
    state = torch.get_rng_state()
    expected = network.input.numel() + sum(one.numel() for one in network.encoder.parameters())
    assert ToySettings(kind=kind, members=members).encoder_numbers(20) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_first_rows_are_small() -> None:
    network = network_of("untied", items=2000)
    assert np.std(network.output.numpy()) == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(network.input[:, :5], network.output[:, :5])
