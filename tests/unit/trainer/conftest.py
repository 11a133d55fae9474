import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> None:
    """Equal bits need it, and matrices as small as these are slower on two."""
    torch.set_num_threads(1)
