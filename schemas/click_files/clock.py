"""Times of clicks in milliseconds since the epoch, whatever a file counts in.

The unit is told by the file's first rows: a date between 1995 and tomorrow is one number in seconds, another in
milliseconds, and never both. A row outside these years has a wrong clock. A file whose times all lie near 0 counts
from a beginning of its own, and is taken so.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite, isnan
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from schemas.click_files.columns import Bools, Bytes, Cells, Ints
from schemas.click_files.options import TimeUnit
from schemas.errors import ClickFileError

Floats = npt.NDArray[np.float64]
DAY_MS: Final = 86_400_000
EARLIEST_MS: Final = 788_918_400_000  # 1995
_MS: Final = {
    TimeUnit.SECONDS: 1000.0,
    TimeUnit.MILLISECONDS: 1.0,
    TimeUnit.MICROSECONDS: 1e-3,
    TimeUnit.NANOSECONDS: 1e-6,
}
_DATE: Final = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?")
# What numpy reads at once: date, or date and time with a dot and digits, in UTC.
_PLAIN: Final = re.compile(
    rb"([0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)?)(Z| UTC)?"
)
_DIGITS: Final = re.compile(rb"[0-9]{1,15}(\.[0-9]{1,3})?")


@dataclass
class Clock:
    """Reads the times of one file: call `milliseconds` for its rows, some at a time, in order.

    now_ms    the reader's own time: nothing is later than a day after it
    unit      None: told by the first rows
    counted   the unit of a file that counts from a beginning of its own
    """

    now_ms: int
    unit: TimeUnit | None
    counted: TimeUnit
    relative: bool = False
    dates: bool | None = None  # as texts; None until the first rows
    _least: float = 0.0
    _most: float = 0.0

    def milliseconds(self, column: Sequence[Any] | Floats, since: Sequence[Any] | None = None) -> tuple[Ints, Bools]:
        """Times `[n]`, and which rows have one, `[n]`; a bad row has 0.

        `column` holds texts, numbers, or numbers as an array with NaN where there is none; `since` milliseconds that
        are added. Raises ClickFileError when the first rows have no unit.
        """
        began = self.dates is not None
        if self.dates is None:
            self.dates = not isinstance(column, np.ndarray) and _are_dates(column)
        times = numbers(column) if isinstance(column, np.ndarray) or not self.dates else dates_ms(column)
        if not began:
            self._begin(times)
        if not self.dates:
            times = times * _MS[self.unit or self.counted]
        if since is not None:
            after = numbers(since)
            times = times + np.where(after >= 0, after, np.nan)
        with np.errstate(invalid="ignore"):
            good = (times >= self._least) & (times <= self._most)
        return np.rint(np.where(good, times, 0.0)).astype(np.int64), good

    def reason(self, value: Any) -> str:
        """Why a value is no time."""
        value = value.item() if isinstance(value, np.generic) else value
        if value in (None, b"") or (isinstance(value, float) and isnan(value)):
            return "is missing"
        shown = repr(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)[:60]
        time = float((dates_ms if self.dates else numbers)([value])[0])
        if not isfinite(time):
            return f"{shown} is no {'date and time' if self.dates else 'number'}"
        if not self.dates:
            time *= _MS[self.unit or self.counted]
        as_date = _date(time)
        if self.relative:
            return f"{shown} is not like the other times, which count from 0"
        return f"{shown} ({as_date}) is not between 1995 and tomorrow: a wrong clock?"

    def described(self) -> str:
        """The unit, for people."""
        if self.dates:
            return "dates, UTC where they do not say"
        return f"{self.unit or self.counted}{', not since 1970' if self.relative else ''}"

    def _begin(self, times: Floats) -> None:
        finite = times[np.isfinite(times)]
        latest = float(self.now_ms + DAY_MS)
        self._least, self._most = float(EARLIEST_MS), latest
        if not len(finite):
            return
        middle = float(np.partition(finite, len(finite) // 2)[len(finite) // 2])
        if self.dates:
            return
        fitting = [unit for unit, factor in _MS.items() if EARLIEST_MS <= middle * factor <= latest]
        if self.unit is None and fitting:
            self.unit = fitting[0]
        elif self.unit is not None and fitting and self.unit not in fitting:
            raise ClickFileError(
                f"the times are no {self.unit} (a common one, {middle:.0f}, is {_date(middle * _MS[self.unit])}), but "
                f"{fitting[0]} ({_date(middle * _MS[fitting[0]])}): name these, or no unit"
            )
        elif not fitting:
            if middle * _MS[self.unit or self.counted] >= EARLIEST_MS:
                raise ClickFileError(
                    f"the times (a common one is {middle:.0f}) are between 1995 and tomorrow in no unit: is the right "
                    "column named?"
                )
            self.relative, self._least, self._most = True, 0.0, float(EARLIEST_MS)


def numbers(column: Sequence[Any] | Floats) -> Floats:
    """`[n]`, NaN for what is no number."""
    if isinstance(column, np.ndarray):
        return column
    cells = _of_one_width(column)
    if cells is not None and _DIGITS.fullmatch(column[0]):
        whole, dot, fraction = column[0].partition(b".")
        digits = np.ascontiguousarray(cells.T) - ord("0")
        places = [place for place in range(len(digits)) if not dot or place != len(whole)]
        aligned = not dot or (cells[:, len(whole)] == ord(".")).all()
        if aligned and all(int(digits[place].max()) <= 9 for place in places):  # what is below "0" is above 9
            number = np.zeros(len(column), np.int64)
            for place in places:
                number = number * 10 + digits[place]
            return number / 10.0 ** len(fraction)
    try:
        return np.fromiter(map(float, column), np.float64, len(column))
    except (ValueError, TypeError, OverflowError):
        return np.fromiter(map(_number, column), np.float64, len(column))


def dates_ms(column: Sequence[Any]) -> Floats:
    """Milliseconds `[n]` of ISO 8601 dates and times, NaN for what is none; UTC where they do not say."""
    plain = _PLAIN.fullmatch(column[0]) if isinstance(column[0], bytes) else None
    cells = _of_one_width(column) if plain else None
    if plain and cells is not None:
        width, zone = len(plain[1]), (plain[2] or b"")
        pattern = np.frombuffer(plain[1], np.uint8)
        separators = (pattern < ord("0")) | (pattern > ord("9"))
        alike = (cells[:, :width][:, separators] == pattern[separators]).all()
        if alike and (cells[:, width:] == np.frombuffer(zone, np.uint8)).all():
            try:
                texts = np.ascontiguousarray(cells[:, :width]).view(f"S{width}").ravel()
                return texts.astype("datetime64[ms]").astype(np.int64).astype(np.float64)
            except ValueError:  # such as the 30th of February: row by row
                pass
    return np.fromiter(map(_date_ms, column), np.float64, len(column))


def _of_one_width(column: Sequence[Any]) -> Bytes | None:
    """Texts of the same length as `[n, width]`, else None."""
    if isinstance(column, Cells):
        return column.matrix()
    try:
        widths = set(map(len, column))
        if len(widths) == 1 and widths != {0}:
            return np.frombuffer(b"".join(column), np.uint8).reshape(len(column), -1)
    except TypeError:
        pass  # numbers among them
    return None


def _number(value: Any) -> float:
    try:
        return float("nan") if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        return float("nan")


def _date_ms(value: Any) -> float:
    text = value if isinstance(value, str) else value.decode("latin-1") if isinstance(value, bytes) else ""
    try:
        moment = datetime.datetime.fromisoformat(text.strip().removesuffix(" UTC"))
        return round((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return float("nan")


def _are_dates(column: Sequence[Any]) -> bool:
    sample = [value.encode() if isinstance(value, str) else value for value in islice(column, 1000)]
    return 2 * sum(isinstance(value, bytes) and _DATE.fullmatch(value.strip()) is not None for value in sample) > len(
        sample
    )


def _date(time_ms: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return "no date of ours"
