"""A training run's steps on another device, for a caller whose weights stay where they are."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.batches import Schedule
from trainer.data.targets import Floats
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.gru.optimizer import Optimizer, optimizer_of
from trainer.training.gru.reference_steps import ReferenceSteps
from trainer.training.sampling import NegativeSampler


class DeviceSteps:
    """The plain steps, on a device's own copies of the weights and of the optimizers' state.

    The copies are taken when an epoch begins and brought home with its last step: between epochs, where weights are
    averaged, judged and kept, the caller's own are right. Within an epoch they are those from before it.
    """

    def __init__(
        self,
        settings: Gru4RecSettings,
        weights: Weights,
        *,
        optimizers: Mapping[str, Optimizer],
        support: Tensor,
        sampler: NegativeSampler,
        device: torch.device,
    ) -> None:
        here = weights.tensors()
        there = {name: tensor.to(device, copy=True) for name, tensor in here.items()}
        moved = {name: optimizer_of(settings, there[name]) for name in optimizers}
        self._copies = [(here[name], there[name]) for name in optimizers]  # (the caller's, the device's)
        for name, optimizer in optimizers.items():
            state = moved[name].tensors()
            self._copies += [(tensor, state[part]) for part, tensor in optimizer.tensors().items()]
        self._steps = ReferenceSteps(
            settings, Weights.of_tensors(there), optimizers=moved, support=support.to(device), sampler=sampler
        )
        self._last = 0

    def begin(self, items: npt.NDArray[np.int64], plan: Schedule, weights: Floats | None = None) -> None:
        """An epoch over clicks int64[clicks] by a schedule; ``weights`` float32[clicks] of each as a target."""
        for here, there in self._copies:
            there.copy_(here)
        self._steps.begin(items, plan, weights)
        self._last = plan.steps

    def run(self, epoch: int, first: int, last: int) -> float:
        """The loss of the steps first..last, summed over their lanes."""
        loss = self._steps.run(epoch, first, last)
        if last == self._last:
            for here, there in self._copies:
                here.copy_(there)
        return loss
