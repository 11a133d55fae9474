"""What a benchmark tells: a table for people, and as the last line of standard output one JSON object for programs."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from bench import avx2

console = Console(stderr=True)


@dataclass(frozen=True)
class Report:
    """The outcome of one benchmark.

    Attributes:
        bench: its name.
        rows: one a measured case, its parameters and figures by name; times and rates carry their unit in the name.
        ratios: of things that were run side by side in turn; these travel between machines, the figures do not.
    """

    bench: str
    rows: Sequence[Mapping[str, Any]]
    ratios: Mapping[str, float] = field(default_factory=dict)

    def show(self, title: str) -> None:
        """Print the table to standard error, as a block a row where it does not fit, and JSON to standard output."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = Table(*columns, title=title)
        for row in self.rows:
            table.add_row(*(_shown(row.get(name)) for name in columns))
        if Measurement.get(console, console.options.update(max_width=100_000), table).maximum <= console.width:
            console.print(table)
        else:  # a folded table cannot be read, and a cut one tells less than was measured
            console.print(title, style="italic", soft_wrap=True)
            wide = max(map(len, columns))
            for row in self.rows:
                lines = (f"  {name:{wide}}  {_shown(row[name])}" for name in columns if row.get(name) is not None)
                console.print("\n".join(lines), end="\n\n", soft_wrap=True, highlight=False, markup=False)
        for name, ratio in self.ratios.items():
            console.print(f"{name}: {ratio:.2f}")
        print(
            json.dumps({"bench": self.bench, "machine": machine(), "rows": self.rows, "ratios": self.ratios}),
            flush=True,
        )


def machine() -> str:
    """Where the figures come from, as far as they depend on it."""
    model, memory = platform.machine(), ""
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        seen = ("avx2",) if avx2.hidden() else ("avx2", "avx512f", "avx512_vnni")
        model += "".join(f" {flag}" for flag in seen if flag in flags)
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    slow = f", workers on {share} of one core" if (share := os.environ.get("CORE_SHARE")) else ""
    return f"{os.cpu_count()} cores, {model}{memory}, Python {platform.python_version()}{slow}"


def spread(values: Sequence[float]) -> tuple[float, list[float]]:
    """Median, and the smallest and the largest."""
    return statistics.median(values), [min(values), max(values)]


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case list():
            return "-".join(_shown(one) for one in value)
        case dict():
            return " ".join(f"{name} {_shown(one)}" for name, one in value.items())
        case _:
            return str(value)
