"""Types of clicks as numbers, and which events of a file are clicks at all."""

from collections.abc import Set
from typing import Final

from schemas.click_files.forms import Form
from schemas.click_files.ids import id_reason
from schemas.messages.click import VIEW

UNKNOWN: Final = -1
LEFT_OUT: Final = -2


class TypeNumbers(dict[bytes, int]):
    """The number of the type that a value of a file's column stands for; negative where the row is no click.

    `numbers` has the number of each type that was met so far, in any file of a log: views are 0. `wanted` are the types
    that are read; None for all.
    """

    def __init__(self, form: Form, wanted: Set[str] | None, numbers: dict[str, int]) -> None:
        super().__init__()
        self._form = form
        self._wanted = wanted
        self._numbers = numbers

    def __missing__(self, value: bytes) -> int:
        self[value] = number = self._number(value)
        return number

    def _number(self, value: bytes) -> int:
        kinds = self._form.kinds
        if kinds:
            name = kinds.get(value.decode("utf-8", "backslashreplace"))
        else:
            name = None if value and id_reason(value) else value.decode() or VIEW
        if name is None:
            return UNKNOWN
        if not name or (self._wanted is not None and name not in self._wanted):
            return LEFT_OUT
        return self._numbers.setdefault(name, len(self._numbers))


def wrong_type(form: Form, value: bytes) -> str:
    """Why a value of the column that tells types is none, with the column's name."""
    if not form.kinds:
        return f"{form.kind} {id_reason(value)}"
    shown = value.decode("utf-8", "backslashreplace")[:40]
    return f"{form.kind} {shown!r} is none of {', '.join(kind for kind in form.kinds if kind)}"
