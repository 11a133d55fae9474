"""Text with a delimiter, in columns. Blocks of regular lines are split at once, quotes around whole fields or not.

Quotes mean something where the delimiter is not a tab, and in files with tabs whose header is quoted: an item named
`19" rack` is no open quote there. Whatever ends inside a quote is refused with the line in which it was opened.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from schemas.click_files.columns import Cells, Column, Ints, Text
from schemas.click_files.forms import Layout
from schemas.click_files.rows import BadRow, Rows
from schemas.errors import ClickFileError

_LONGEST_LINE: Final = 1 << 24
_DELIMITERS: Final = "\t;,|"


def whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text in blocks that end with a line's end, `\\n`. Raises ClickFileError for lines that never end."""
    rest = b""
    for block in blocks:
        rest += block
        cut = rest.rfind(b"\n") + 1
        if cut:
            yield rest[:cut].replace(b"\r\n", b"\n")
            rest = rest[cut:]
        elif len(rest) > _LONGEST_LINE:
            raise ClickFileError("a line of more than 16 MiB: is it text, with line ends?")
    if rest:
        yield rest.removesuffix(b"\r") + b"\n"


def delimiter_of(line: str) -> str:
    """The character that parts the most columns; a tab before the others, as names rarely hold one."""
    if "\t" in line:
        return "\t"
    return max(_DELIMITERS, key=lambda delimiter: len(fields_of(line, delimiter)))


def fields_of(line: str, delimiter: str) -> list[str]:
    """The fields of one line, without quotes around them."""
    if delimiter == "\t" and not quotes_mean(line, delimiter):
        return line.split("\t")
    return next(csv.reader([line], delimiter=delimiter), [])


def quotes_mean(header: str, delimiter: str) -> bool:
    """Whether quotes part a file's fields, by its first line."""
    fields = header.split(delimiter)
    return delimiter != "\t" or all(len(one) > 1 and one[0] == one[-1] == '"' for one in fields)


class Delimited:
    """The rows of a text: iterate once.

    `lines` are blocks of whole lines, the first of which is line `first`. Afterwards `spanning` tells how many records
    go over several lines, `first_spanning` which lines the first one has.
    """

    def __init__(self, lines: Iterator[bytes], layout: Layout, delimiter: str, *, quotes: bool, first: int) -> None:
        self.spanning = 0
        self.first_spanning = ""
        self._blocks = lines
        self._delimiter = delimiter
        self._quotes = quotes
        self._count = len(layout.names)
        self._layout = layout
        self._line = first  # the number of the next line

    def __iter__(self) -> Iterator[Rows]:
        for block in self._blocks:
            quotes = block.count(b'"') if self._quotes else 0
            yield self._regular(block, quotes) or (self._quoted(block) if quotes else self._irregular(block))

    def _regular(self, block: bytes, quotes: int) -> Rows | None:
        """All at once, where each line has the right number of fields, and `quotes` stand around whole fields alone."""
        delimiter, count = ord(self._delimiter), self._count
        text = Text(block)
        ends = np.flatnonzero((text.cells == delimiter) | (text.cells == ord("\n")))
        lines = block.count(b"\n")
        if len(ends) != lines * count or not (text.cells[ends[count - 1 :: count]] == ord("\n")).all():
            return None
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        if quotes:
            quote = text.cells == ord('"')
            quoted = (ends - starts > 1) & quote[starts] & quote[ends - 1]
            if quotes != 2 * np.count_nonzero(quoted):
                return None  # quotes inside a field, or a field that goes on behind a delimiter or a line's end
            starts, ends = starts + quoted, ends - quoted
        numbers = np.arange(self._line, self._line + lines)
        self._line += lines

        def column(place: int) -> Cells:
            return Cells(text, starts[place::count], ends[place::count] - starts[place::count])

        return self._rows(numbers, column, [])

    def _irregular(self, block: bytes) -> Rows:
        delimiter = self._delimiter.encode()
        lines = block.split(b"\n")
        lines.pop()
        rows = [(number, line.split(delimiter)) for number, line in enumerate(lines, start=self._line) if line]
        self._line += len(lines)
        return self._of_records(rows)

    def _quoted(self, block: bytes) -> Rows:
        """By the csv module; the last record may go on in the blocks that follow."""
        waiting = block.split(b"\n")[:-1][::-1]
        taken = 0

        def texts() -> Iterator[str]:
            nonlocal taken
            while True:
                if not waiting:
                    waiting.extend(next(self._blocks, b"").split(b"\n")[:-1][::-1])
                if not waiting:
                    return
                taken += 1
                yield waiting.pop().decode("utf-8", "surrogateescape") + "\n"

        rows: list[tuple[int, list[bytes]]] = []
        reader = csv.reader(texts(), delimiter=self._delimiter, strict=True)
        begin = 0
        try:
            for fields in reader:
                if taken - begin > 1:
                    self.spanning += 1
                    self.first_spanning = self.first_spanning or f"{self._line + begin} to {self._line + taken - 1}"
                if fields:
                    row = [field.encode("utf-8", "surrogateescape") for field in fields]
                    rows.append((self._line + begin, row))
                begin = taken
                if not waiting:
                    break
        except csv.Error as error:
            line = self._line + begin
            what = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            if "field limit" in str(error):
                what = "a field of more than 131,072 characters: is a quote opened and never closed?"
            raise ClickFileError(f"line {line}: {what}: mend the row (a quote inside quotes is doubled)") from None
        self._line += taken
        return self._of_records(rows)

    def _of_records(self, records: Sequence[tuple[int, list[bytes]]]) -> Rows:
        count = self._count
        broken = [
            BadRow(f"line {number}", f"{len(fields)} columns in place of {count}")
            for number, fields in records
            if len(fields) != count
        ]
        good = [record for record in records if len(record[1]) == count] if broken else records
        columns = list(zip(*(fields for _, fields in good), strict=True)) or [()] * count
        return self._rows(np.array([number for number, _ in good], np.int64), columns.__getitem__, broken)

    def _rows(self, numbers: Ints, column: Callable[[int], Column], broken: list[BadRow]) -> Rows:
        at = self._layout

        def of(place: int | None) -> Column | None:
            return None if place is None else column(place)

        return Rows(
            numbers, column(at.session), column(at.item), of(at.time), of(at.since), of(at.kind), of(at.event), broken
        )
