"""The products by each tile: LLVM compiles any of them for the processor that is here."""

import numba
import numpy as np
import pytest

from trainer.training.gru.compiled.products import AVX2, AVX512, Matrix, Tile, product_by, target_features, tile_of


@pytest.mark.parametrize(
    ("features", "tile"),
    [
        ("+avx512f,+avx2,+fma", AVX512),
        ("+sse2,-avx512f,+avx2,+fma", AVX2),
        ("+avx2,-fma", None),
        ("+neon", None),
        ("", None),
    ],
)
def test_a_processor_gets_the_tile_that_its_registers_hold(
    features: str, tile: Tile | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor that Numba compiles for, whichever is here."""
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    assert tile_of(target_features()) == tile


@pytest.mark.parametrize("tile", [AVX512, AVX2, None], ids=["AVX-512", "AVX2", "BLAS"])
def test_products(tile: Tile | None) -> None:
    """Whole tiles, rows and columns left over, one block of the inner index and several, either way round."""
    of_tile = product_by(tile)

    @numba.njit()
    def multiply(a: Matrix, b: Matrix, out: Matrix) -> None:
        of_tile(a, b, out)

    random = np.random.default_rng(1)
    for width in (1, 3, 4, 5, 8, 9, 12, 16, 17, 20, 100, 112, 113, 230, 250, 300):
        for rows, depth in ((1, 1), (2, 385), (3, 7), (5, 129), (6, 128), (7, 384), (13, 800)):
            b = random.normal(size=(depth, width)).astype(np.float32)
            for a in (random.normal(size=(rows, depth)), random.normal(size=(depth, rows)).T):
                left = a.astype(np.float32, order="K")
                out = np.full((rows + 2, width), np.nan, np.float32)
                multiply(left, b, out[1:-1])
                np.testing.assert_allclose(out[1:-1], left.astype(np.float64) @ b, rtol=1e-4, atol=1e-3)
                assert np.isnan(out[[0, -1]]).all()  # nothing beside the result
