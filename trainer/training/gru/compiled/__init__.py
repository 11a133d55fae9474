"""The training step compiled by Numba: the same mathematics as :mod:`trainer.training.gru.step`, without interpreter.

Arrays stand where they stand between steps, duplicates of a score column are computed once (:mod:`.columns`), loss and
gradient take one pass a row, and an item's row is summed, squared, and moved in one pass. The matrix products are
SciPy's BLAS, or those of :mod:`.products`. :mod:`.engine` is the one entrance.
"""
