import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Equal bits need it, and matrices as small as these are slower on two, which a command of the test before took."""
    torch.set_num_threads(1)
