import math

import numpy as np
import torch

from tests.unit.trainer.models.test_encoders import LOG, SESSIONS, Case, Tables, alone, clicks_of
from trainer.models.cl4srec import View, contrastive_loss, cropped, masked, reordered, two_views

LENGTH = torch.tensor([1, 2, 5, 10, 10, 10])
WIDTH = 11


def changed(view: View) -> list[list[int]]:
    """What is left of sessions 0, 1, 2 ..; -1 where the learned row stands."""
    return [
        [-1 if away else click for click, away in zip(order[:n], hidden[:n], strict=True)]
        for order, hidden, n in zip(view.order.tolist(), view.hidden.tolist(), view.length.tolist(), strict=True)
    ]


def test_a_crop_keeps_clicks_in_a_row() -> None:
    torch.manual_seed(1)
    starts = set()
    for _ in range(50):
        view = changed(cropped(LENGTH, WIDTH, 0.6))
        assert [len(clicks) for clicks in view] == [1, 1, 3, 6, 6, 6]
        for clicks, length in zip(view, LENGTH.tolist(), strict=True):
            assert clicks == list(range(clicks[0], clicks[0] + len(clicks)))
            assert clicks[-1] < length
        starts |= {clicks[0] for clicks in view[3:]}
    assert starts == {0, 1, 2, 3, 4}


def test_a_mask_hides_clicks() -> None:
    torch.manual_seed(1)
    hidden = set()
    for _ in range(50):
        view = changed(masked(LENGTH, WIDTH, 0.3))
        assert [clicks.count(-1) for clicks in view] == [0, 0, 1, 3, 3, 3]
        assert all(click in (-1, place) for clicks in view for place, click in enumerate(clicks))
        hidden |= {place for clicks in view for place, click in enumerate(clicks) if click < 0}
    assert hidden == set(range(10))


def test_a_reordering_shuffles_clicks_in_a_row() -> None:
    torch.manual_seed(1)
    moved: set[int] = set()
    for _ in range(50):
        view = changed(reordered(LENGTH, WIDTH, 0.6))
        for clicks, length in zip(view, LENGTH.tolist(), strict=True):
            assert sorted(clicks) == list(range(length))
            away = [place for place, click in enumerate(clicks) if place != click]
            assert not away or away[-1] - away[0] < 0.6 * length
            moved |= set(away)
    assert moved == set(range(10))


def test_the_two_views_of_a_session_are_changed_in_different_ways() -> None:
    torch.manual_seed(1)
    first, second = two_views(torch.full((200,), 10), WIDTH, (0.6, 0.3, 0.6))

    def ways(view: View) -> list[str]:
        return ["crop" if len(clicks) == 6 else "mask" if -1 in clicks else "reorder" for clicks in changed(view)]

    pairs = set(zip(ways(first), ways(second), strict=True))
    assert len(pairs) == 6
    assert all(one != other for one, other in pairs)


def test_the_contrastive_loss_is_the_papers() -> None:
    torch.manual_seed(2)
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    views = torch.cat([first, second]).numpy()
    expected = []
    for i in range(6):
        partner = (i + 3) % 6
        likeness = {j: math.exp(views[i] @ views[j] / 0.5) for j in range(6) if j != i}
        expected.append(-math.log(likeness[partner] / sum(likeness.values())))
    np.testing.assert_allclose(contrastive_loss(first, second, 0.5).item(), np.mean(expected), rtol=1e-5)


def test_what_serves_is_sasrec() -> None:
    encoder = Case("cl4srec", {}).encoder()
    plain = Case("sasrec", {}).encoder()
    plain.load_state_dict({name: w for name, w in encoder.state_dict().items() if name != "mask"})
    for session in SESSIONS:
        assert torch.equal(alone(encoder, session), alone(plain, session))
    tables = Tables(encoder)
    losses = [
        one.loss(clicks_of(LOG), tables.item_tables(), tables.ranking).item()
        for one in (Case("cl4srec", {"contrast": 0}).encoder(), Case("cl4srec", {}).encoder())
    ]
    assert losses[0] < losses[1]
