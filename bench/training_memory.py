"""What does training hold in memory? Each fit in a process of its own, its greatest resident set beside an empty one's.

python -m bench training_memory
"""

import json
import os
import platform
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# (sessions, units, batch_size, n_sample): more clicks, more units, more lanes, one at a time; the first is the base.
FITS = (
    (3_000, 100, 100, 0),
    (60_000, 100, 100, 0),
    (3_000, 400, 100, 0),
    (3_000, 100, 100, 2048),
    (3_000, 100, 400, 2048),
)
_FIT = """
import resource, sys
from bench.generated_clicks import generated_sessions
from trainer.engine import use_threads
from trainer.fit import fit
from trainer.settings import TrainingSettings
sessions, units, batch_size, n_sample = map(int, sys.argv[1:])
use_threads(1)
fit(generated_sessions(300, items=500), TrainingSettings(epochs=1, engine="compiled"))  # libraries and code
data = generated_sessions(sessions)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit(data, TrainingSettings(epochs=1, hidden_size=units, batch_size=batch_size, n_sample=n_sample, engine="compiled"))
print(data.clicks, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def main() -> None:
    """Print a table, and as the last line one JSON object."""
    table = Table("clicks", "units", "batch", "samples", "MiB", title="What a fit of 37,483 items adds to the process")
    rows: list[dict[str, Any]] = []
    for sessions, units, batch_size, n_sample in FITS:
        command = [sys.executable, "-c", _FIT, *map(str, (sessions, units, batch_size, n_sample))]
        clicks, used = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append(
            {"clicks": int(clicks), "units": units, "batch_size": batch_size, "n_sample": n_sample, "mib": float(used)}
        )
        table.add_row(f"{int(clicks):,}", str(units), str(batch_size), str(n_sample), f"{float(used):.0f}")
    Console(stderr=True).print(table)
    base, clicks_row = rows[0], rows[1]
    ratios = {
        "bytes_per_click": (clicks_row["mib"] - base["mib"]) * 2**20 / (clicks_row["clicks"] - base["clicks"]),
        "units_400_to_100": rows[2]["mib"] / base["mib"],
    }
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"bench": "training_memory", "machine": machine, "rows": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
