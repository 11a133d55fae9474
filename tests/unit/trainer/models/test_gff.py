import numpy as np
import torch

from trainer.models.gff import GffEncoder, GffSettings


def small_encoder() -> GffEncoder:
    return GffEncoder(GffSettings(hidden_size=5)).eval()


def test_a_query_is_the_mean_of_the_session_and_the_last_items_context() -> None:
    encoder = small_encoder()
    table = np.random.default_rng(1).normal(size=(9, 10)).astype(np.float32)
    part, context = table[:, :5], table[:, 5:]
    items = torch.tensor([[3, 1, 3, 2], [5, 6, -1, -1]])
    found = encoder(torch.from_numpy(table)[items], items, torch.tensor([4, 2])).numpy()
    np.testing.assert_allclose(found[0], (part[3] + part[1] + part[3] + part[2]) / 4 + context[2], atol=1e-6)
    np.testing.assert_allclose(found[1], (part[5] + part[6]) / 2 + context[6], atol=1e-6)


def test_an_input_row_holds_both_roles_and_nothing_else_is_learned() -> None:
    encoder = small_encoder()
    assert (encoder.input_size, encoder.query_size, encoder.tied) == (10, 5, False)
    assert list(encoder.parameters()) == []
