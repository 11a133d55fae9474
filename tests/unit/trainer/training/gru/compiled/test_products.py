"""The products for processors that are not this one: LLVM compiles any tile for any of them."""

import numba
import numpy as np
import pytest

from trainer.training.gru.compiled.products import AVX2, AVX512, Matrix, Tile, product_by, tile_of


@pytest.mark.parametrize(
    ("features", "tile"),
    [
        ({"avx512f": True, "avx2": True, "fma": True}, AVX512),
        ({"avx512f": False, "avx2": True, "fma": True}, AVX2),
        ({"avx2": True, "fma": False}, None),
        ({}, None),
    ],
)
def test_a_processor_gets_the_tile_that_its_registers_hold(features: dict[str, bool], tile: Tile | None) -> None:
    assert tile_of(features) == tile


def test_products_with_avx2() -> None:
    """Whole tiles, rows and columns left over, one block of the inner index and several, either way round."""
    of_tile = product_by(AVX2)

    @numba.njit()
    def multiply(a: Matrix, b: Matrix, out: Matrix) -> None:
        of_tile(a, b, out)

    random = np.random.default_rng(1)
    for width in (1, 3, 4, 5, 8, 9, 12, 16, 17, 100, 250, 300):
        for rows, depth in ((1, 1), (5, 129), (6, 128), (13, 300)):
            b = random.normal(size=(depth, width)).astype(np.float32)
            for a in (random.normal(size=(rows, depth)), random.normal(size=(depth, rows)).T):
                left = a.astype(np.float32, order="K")
                out = np.full((rows + 2, width), np.nan, np.float32)
                multiply(left, b, out[1:-1])
                np.testing.assert_allclose(out[1:-1], left.astype(np.float64) @ b, rtol=1e-4, atol=1e-4)
                assert np.isnan(out[[0, -1]]).all()  # nothing beside the result
