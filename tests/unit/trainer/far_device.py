"""A make-believe device, for what runs on a GPU where there is none.

Its tensors have their numbers in host memory and say that they are elsewhere. Like a GPU it refuses operations between
its own tensors and the host's (but copies, and host tensors of no dimension), so a tensor that was left behind is
found; unlike torch's fake tensors it computes, so that a whole training runs on it, with the host's bits. It cannot
tell whether a GPU knows an operation, nor how exact or fast it is.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# Of torch's own devices the one that needs no driver to be named; nothing else here uses it.
FAR: Final = torch.device("meta")
_COPIES: Final = {"aten::to", "aten::_to_copy", "aten::copy_"}
_ASKS_ONLY: Final = "aten::_has_compatible_shallow_copy_type"
_WAITS: Final = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


class MixedDevicesError(AssertionError):
    """An operation between tensors of the host and of the device."""


class FarTensor(Tensor):
    """A tensor that says it is on the device."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        made: FarTensor = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        made.near = near
        return made

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"FarTensor({self.near})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets the class
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return FarDevice().run(func, args, kwargs or {})


class FarDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """The device is there while this is on. Counts what crosses over to it, and what the host waits for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent = self.waits = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do it on the host, and say where the result is. Raises :class:`MixedDevicesError`."""
        name = func._schema.name
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        far = [one for one in tensors if isinstance(one, FarTensor)]
        near = [one for one in tensors if not isinstance(one, FarTensor) and one.dim()]
        if far and near and name not in _COPIES and name != _ASKS_ONLY:
            raise MixedDevicesError(f"{func} of {len(far)} tensors on the device and {len(near)} on the host")
        asked = kwargs.get("device")
        if name == "aten::copy_":
            goes_far = isinstance(tensors[0], FarTensor)
        else:
            goes_far = asked == FAR if asked is not None else bool(far)
        if name in _COPIES and far:
            self.waits += not goes_far
        self.sent += name in _COPIES and goes_far and bool(near)
        by_mask = name == "aten::index" and any(one.dtype == torch.bool for one in tensors[1:])
        self.waits += bool(far) and (name in _WAITS or by_mask)
        self.operations += bool(far)
        args, kwargs = tree_map(_near, args), tree_map(_near, kwargs)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*args, **kwargs)
        return tree_map(lambda one: FarTensor(one) if isinstance(one, Tensor) else one, found) if goes_far else found


def _near(value: Any) -> Any:
    return value.near if isinstance(value, FarTensor) else value
