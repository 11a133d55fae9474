"""Training of window families elsewhere than on the host, where no GPU is there: nothing is left behind.

What is learned is not compared: a module's parameters become parts of one vector, of which the make-believe device
keeps no trace.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.far_device import FAR, FarDevice, FarTensor
from tests.unit.trainer.models.test_encoders import KINDS, Case, cases
from trainer.models.settings import NetworkSettings
from trainer.training import engine
from trainer.training.device import Hardware
from trainer.training.fit import fit

SESSIONS = random_sessions(12, items=12)
# The device's layout of a slice is not torch's, and its linear layer then refuses a view.
NOT_MADE_BELIEVE = {"narm"}
CASES = [one for one in cases(KINDS) if one.family not in NOT_MADE_BELIEVE]
# One of each way to a loss: which columns it is over is nothing to the rest of an encoder.
EXACT = {"sasrec", "rbm", "cl4srec", "bert4rec", "transformer-xlnet-plm", "transformer-electra-rtd"}


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarDevice]:
    monkeypatch.setattr(Hardware, "device_of", lambda *_: FAR)
    monkeypatch.setattr(engine, "device_identity", lambda device: {"device": str(device)})
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with FarDevice() as device:
        yield device
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize(
    ("case", "samples"), [(one, 5) for one in CASES] + [(one, 100) for one in CASES if repr(one) in EXACT], ids=repr
)
def test_every_family_trains_on_a_device(case: Case, samples: int, far: FarDevice) -> None:
    """By columns of a step, and over all items."""
    told = {"family": case.family, **case.told, "hidden_size": 8, "window": 5, "batch_size": 6, "epochs": 1}
    found = fit(SESSIONS, NetworkSettings.parse({**told, "n_sample": samples, "memory": "none"}))
    assert found.device == FAR
    assert far.operations > 100
    assert not any(isinstance(tensor, FarTensor) for tensor in found.network.tensors().values())
