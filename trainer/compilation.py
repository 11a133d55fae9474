"""How functions are compiled by Numba, and their machine code kept for the next process."""

import fcntl
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

# Sums may be taken in another order, so that they can be taken side by side; the order is fixed by the compiled code.
# A number that is none stays one: the training looks for it.
SUMS = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function: F) -> F:
    """Compile on first use, without the interpreter's lock; for functions that are called by compiled ones only.

    Their entries for the interpreter and for C, of which a function with dozens of arrays has long ones, are left out.
    """
    alone: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, numba.njit(nogil=True, fastmath=SUMS, error_model="numpy", **alone)(function))


def strictly_compiled(function: F) -> F:
    """The same, for arithmetic whose order matters."""
    return cast(F, numba.njit(nogil=True, fastmath={"contract"}, error_model="numpy")(function))


def sources(module: str) -> int:
    """A digest of a module's code, and of all that stands in its folder or here. ``module`` is its file."""
    digest = 1
    for file in (Path(__file__), *sorted(Path(module).parent.glob("*.py"))):
        digest = zlib.crc32(file.read_bytes(), digest)
    return digest


def kept(function: F, *, parallel: bool = False) -> F:
    """Compile a function for the interpreter, and keep its machine code on disk for the next process.

    Numba keeps code under the file and the text of the function that is called, and would go on using it when something
    changed in another file that it calls: let the function be a closure of :func:`sources`, which makes that part of
    the key. How the function is compiled is no part of it either: a function that is kept both ways needs two numbers.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": SUMS, "error_model": "numpy", "parallel": parallel}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in, as in a container without a home: compiled in every process
        return cast(F, numba.njit(**options)(function))

    def run(*arguments: Any) -> Any:
        if not dispatcher.signatures:
            # Half a minute's work: of processes that start together one compiles, and the others take its code.
            with Path(dispatcher.stats.cache_path, "compiling.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                dispatcher.compile(tuple(map(numba.typeof, arguments)))
        return dispatcher(*arguments)

    return cast(F, run)
