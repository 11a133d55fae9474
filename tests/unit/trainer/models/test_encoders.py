"""What holds of the encoder of every family whose queries come from a session's last items."""

from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.models.base import Clicks, Encoder, ItemTables
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import TrainingSettings, WindowSettings

ITEMS, WINDOW = 12, 6

# The kinds of a family that differ in more than numbers; a family that is not named has one.
KINDS: dict[str, tuple[dict[str, object], ...]] = {
    "transformer": (
        {"architecture": "gpt2", "objective": "clm"},
        {"architecture": "transformer-xl", "objective": "clm"},
        {"architecture": "bert", "objective": "mlm"},
        {"architecture": "electra", "objective": "rtd"},
        {"architecture": "xlnet", "objective": "clm"},
        {"architecture": "xlnet", "objective": "mlm"},
        {"architecture": "xlnet", "objective": "plm"},
        {"architecture": "xlnet", "objective": "rtd"},
    ),
}
UNMEASURED = frozenset({"rbm"})
"""Families whose loss says nothing about what was learned; their own tests do."""


class EncoderSettings(Protocol):
    """Settings of such a family."""

    hidden_size: int
    window: int

    def encoder(self) -> Encoder: ...


class Case:
    """A family, and what it is told besides the sizes."""

    def __init__(self, family: str, told: dict[str, object]) -> None:
        self.family, self.told = family, told

    def __repr__(self) -> str:
        return "-".join([self.family, *map(str, self.told.values())])

    def settings(self, **values: object) -> EncoderSettings:
        small = {"hidden_size": 8, "window": WINDOW, "dropout": 0.0}
        return cast(EncoderSettings, TrainingSettings.parse({"family": self.family, **small, **self.told, **values}))

    def encoder(self, seed: int = 1, **values: object) -> Encoder:
        """One that has been shaken, so that zeros of the start hide nothing."""
        torch.manual_seed(seed)
        made = self.settings(**values).encoder().eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return made


def cases(kinds: dict[str, tuple[dict[str, object], ...]]) -> list[Case]:
    families = [family for family in FAMILIES if issubclass(settings_class(family), WindowSettings)]
    return [Case(family, told) for family in families for told in kinds.get(family, ({},))]


every_family = pytest.mark.parametrize("case", cases(KINDS), ids=repr)

SESSIONS = ([3], [3, 5], [1, 7, 1], [0, 4, 2, 11, 4, 4], [9, 8, 7, 6], [5, 5, 5, 5, 5], [2, 10, 3, 8, 0, 6])


class Tables(nn.Module):
    """Tables of all items, as a trainer has them."""

    def __init__(self, encoder: Encoder, spread: float = 0.5) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.output = nn.Parameter(spread * torch.randn(ITEMS, encoder.query_size, generator=draw))
        self.own = nn.Parameter(spread * torch.randn(ITEMS, encoder.input_size, generator=draw))
        self.tied = encoder.tied

    def item_tables(self) -> ItemTables:
        return ItemTables(self.output if self.tied else self.own, self.output)

    def ranking(self, queries: Tensor, columns: Tensor, weights: Tensor | None = None) -> Tensor:
        losses = nn.functional.cross_entropy(queries @ self.output.T, columns, reduction="none")  # [N]
        return (losses if weights is None else losses * weights).mean()


def batch_of(encoder: Encoder, sessions: tuple[list[int], ...], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [B, T, E], items int64[B, T] and length int64[B]; rows behind a session's end are large and arbitrary."""
    items = torch.full((len(sessions), width), -1)
    for one, session in zip(items, sessions, strict=True):
        one[: len(session)] = torch.tensor(session)
    rows = Tables(encoder).item_tables().input.detach()[items]  # of the last item where there is none
    rows = torch.where(items[:, :, None] < 0, 50 * torch.randn(rows.shape), rows)
    return rows, items, torch.tensor([len(session) for session in sessions])


def queries(encoder: Encoder, sessions: tuple[list[int], ...], width: int) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, encoder(*batch_of(encoder, sessions, width)))


def alone(encoder: Encoder, session: list[int]) -> Tensor:
    """The query of one session without padding: [D]."""
    return queries(encoder, (session,), len(session))[0]


def clicks_of(sessions: tuple[list[int], ...]) -> Clicks:
    """All clicks but the first are to be predicted."""
    width = max(map(len, sessions))
    items = torch.tensor([session + [-1] * (width - len(session)) for session in sessions])
    target = items >= 0
    target[:, 0] = False
    return Clicks(items, target.sum(1) + 1, target)


# Item i is followed by 5 i + 3, the number of items being the modulus.
LOG = tuple([start, *((start * 5**k + 3 * sum(5**j for j in range(k))) % ITEMS for k in range(1, 2 + start % 5))]
            for start in range(ITEMS))  # fmt: skip


@every_family
def test_a_session_has_one_query_whatever_its_padding_and_its_batch(case: Case) -> None:
    encoder = case.encoder()
    expected = torch.stack([alone(encoder, session) for session in SESSIONS])
    assert expected.shape == (len(SESSIONS), encoder.query_size)
    assert expected.isfinite().all()
    assert torch.pdist(expected).min() > 1e-3, "sessions that differ have queries that differ"
    torch.testing.assert_close(queries(encoder, SESSIONS, WINDOW), expected, rtol=1e-4, atol=1e-5)
    for session, query in zip(SESSIONS, expected, strict=True):
        for width in range(len(session), WINDOW + 1):
            torch.testing.assert_close(queries(encoder, (session,), width)[0], query, rtol=1e-4, atol=1e-5)


@every_family
def test_the_query_of_each_prefix_is_that_of_the_prefix_alone(case: Case) -> None:
    encoder = case.encoder()
    batch = batch_of(encoder, SESSIONS, WINDOW)
    with torch.no_grad():
        found = encoder.prefixes(*batch)
    assert found.shape == (len(SESSIONS), WINDOW, encoder.query_size)
    for session, of_session in zip(SESSIONS, found, strict=True):
        for clicks in range(1, len(session) + 1):
            expected = alone(encoder, session[:clicks])
            torch.testing.assert_close(of_session[clicks - 1], expected, rtol=1e-4, atol=1e-5)


@every_family
def test_a_causal_pass_is_blind_to_later_clicks(case: Case) -> None:
    encoder = case.encoder()
    if not encoder.causal:
        pytest.skip("its queries are made one prefix at a time")
    rows, items, length = batch_of(encoder, SESSIONS[-1:], WINDOW)
    rows.requires_grad_(True)
    found = encoder.prefixes(rows, items, length)
    for click in range(WINDOW):
        (slope,) = torch.autograd.grad(found[0, click].square().sum(), rows, retain_graph=True)
        assert slope[0, click + 1 :].abs().sum() == 0


@every_family
def test_the_loss_reaches_every_parameter(case: Case) -> None:
    encoder = case.encoder().train()
    tables = Tables(encoder)
    encoder.loss(clicks_of(LOG), tables.item_tables(), tables.ranking).backward()  # type: ignore[no-untyped-call]
    named = {name: parameter.grad for name, parameter in [*encoder.named_parameters(), ("output", tables.output)]}
    if not encoder.tied:
        named["input"] = tables.own.grad
    assert [name for name, slope in named.items() if slope is None or slope.abs().max() < 1e-7] == []


@every_family
def test_a_click_to_predict_counts_as_often_as_its_weight_says(case: Case) -> None:
    if case.family in UNMEASURED:
        pytest.skip("it predicts no click")
    encoder = case.encoder()
    tables, clicks = Tables(encoder), clicks_of(LOG)

    def loss(weight: Tensor | None) -> Tensor:
        torch.manual_seed(3)
        return encoder.loss(replace(clicks, weight=weight), tables.item_tables(), tables.ranking)

    weight = torch.ones(clicks.items.shape, requires_grad=True)
    weighed = loss(weight)
    torch.testing.assert_close(weighed, loss(None))
    (slope,) = torch.autograd.grad(weighed, weight)
    assert (slope[clicks.target] != 0).any()
    assert not slope[~clicks.target].any()
    other = torch.rand(weight.shape)
    torch.testing.assert_close(loss(other), weighed + (slope * (other - weight)).sum())  # linear in each


@every_family
def test_a_step_may_be_given_one_click_more_than_a_window(case: Case) -> None:
    """Of it the last is only to be found: else a full window would be served and never learned from."""
    encoder = case.encoder().train()
    tables = Tables(encoder)
    loss = encoder.loss(clicks_of(([*range(WINDOW + 1)], [3, 5])), tables.item_tables(), tables.ranking)
    assert loss.isfinite()


def losses(case: Case, steps: int) -> list[float]:
    torch.manual_seed(5)
    encoder = case.settings(dropout=0.1).encoder().train()
    tables = Tables(encoder, spread=0.2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *tables.parameters()], lr=0.02)
    passed = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = encoder.loss(clicks_of(LOG), tables.item_tables(), tables.ranking)
        assert loss.shape == ()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        passed.append(loss.item())
    return passed


@every_family
def test_sixty_steps_learn_a_small_log_and_the_same_seed_is_the_same_bits(case: Case) -> None:
    passed = losses(case, 60)
    assert case.family in UNMEASURED or np.mean(passed[-15:]) < 0.85 * np.mean(passed[:5])
    assert losses(case, 3) == passed[:3]
