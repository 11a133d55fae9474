from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Equal bits need it, and matrices as small as these are slower on two."""
    torch.set_num_threads(1)
    yield
    # A fit sets it for its process; other tests of this one draw floats that are that small.
    torch.set_flush_denormal(False)
