"""What a user can say about a click file: the same options on both command lines."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Final

import typer


class Format(StrEnum):
    """The forms of file that are known by name (schemas.click_files.forms)."""

    CLICK_FILE = "click-file"
    SESSION_REC = "session-rec"
    RSC15 = "rsc15"
    DIGINETICA = "diginetica"
    RETAILROCKET = "retailrocket"
    COVEO = "coveo"
    COVEO_2020 = "coveo-2020"
    REES46 = "rees46"
    OTTO = "otto"


class TimeUnit(StrEnum):
    """What the numbers of a time column count."""

    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    MICROSECONDS = "microseconds"
    NANOSECONDS = "nanoseconds"


ALL_TYPES: Final = "all"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read click files; what is None is told by the content.

    Raises ValueError for a delimiter that is none, and for no types at all.
    """

    format: Annotated[Format | None, typer.Option("--format", help="Form of the files; else told by content.")] = None
    delimiter: Annotated[str | None, typer.Option(help="One character, or `tab`; else told by the first line.")] = None
    session_column: Annotated[str | None, typer.Option(metavar="NAME", help="Else session_id, or the form's.")] = None
    item_column: Annotated[str | None, typer.Option(metavar="NAME", help="Else item_id, or the form's.")] = None
    time_column: Annotated[str | None, typer.Option(metavar="NAME", help="Else timestamp, or the form's.")] = None
    timestamps: Annotated[
        TimeUnit | None, typer.Option(help="Unit of times that are numbers; else told by their size.")
    ] = None
    types: Annotated[
        str | None,
        typer.Option(
            metavar="TYPES",
            help="Types of clicks to read, such as `view,cart,purchase`, or `all`; by default all of a click file, and "
            "`view` of a public log.",
        ),
    ] = None
    event_column: str | None = None
    """Of the producer's own ids, else event_id: for those who publish clicks, and so no option of all commands."""
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Count rows that are no clicks, and go on.")
    ] = False

    @property
    def wanted(self) -> frozenset[str] | None:
        """The types of clicks to read; None for all, or where the form decides."""
        return None if self.types in (None, ALL_TYPES) else frozenset(self._named())

    def _named(self) -> list[str]:
        return [name for name in map(str.strip, (self.types or "").split(",")) if name]

    def __post_init__(self) -> None:
        if self.types is not None and not self._named():
            raise ValueError(f"types {self.types!r}: name one at least, or `{ALL_TYPES}`")
        if self.delimiter is None:
            return
        delimiter = {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '\r\n"\0':
            raise ValueError(f"delimiter {self.delimiter!r}: must be one ASCII character that can part columns, or tab")
        object.__setattr__(self, "delimiter", delimiter)


Command = Callable[..., None]


def reads_click_files(command: Command) -> Command:
    """Give a command of typer the options above, in place of its parameter `reading: ReadOptions`."""
    names = [field.name for field in fields(ReadOptions) if field.name != "event_column"]
    return with_options(command, "reading", ReadOptions, names)


def with_options(command: Command, parameter: str, kind: type[Any], names: Sequence[str]) -> Command:
    """Give a command of typer the named fields of a dataclass as options, in place of a parameter of that class.

    Options without a default come first. A ValueError of the class is told as a mistake of the command line.
    """
    signature = inspect.signature(command, eval_str=True)
    of_kind = inspect.signature(kind, eval_str=True).parameters
    options = [of_kind[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        named = {name: values.pop(name) for name in names}
        try:
            found = kind(**named)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        command(**values, **{parameter: found})

    kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()]
    needed = [one for one in options if one.default is inspect.Parameter.empty]
    others = [one for one in options if one.default is not inspect.Parameter.empty]
    at = list(signature.parameters).index(parameter)
    parameters = [*needed, *kept[:at], *others, *kept[at + 1 :]]
    # typer reads both; the wrapped function's own would still name the parameter.
    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {one.name: one.annotation for one in parameters}
    return expanded
