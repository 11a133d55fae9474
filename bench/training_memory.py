"""What does training hold in memory? Each fit in a process of its own, its greatest resident set beside an empty one's.

python -m bench training_memory
"""

import subprocess
import sys
from typing import Any

from bench.report import Report, console

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
from trainer.training.device import Hardware
from trainer.training.fit import fit
from trainer.models.settings import Gru4RecSettings
sessions, units, batch_size, n_sample = map(int, sys.argv[1:])
Hardware().set_up()
fit(generated_sessions(300, items=500), Gru4RecSettings(epochs=1, engine="compiled"))  # libraries and code
data = generated_sessions(sessions)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit(data, Gru4RecSettings(epochs=1, hidden_size=units, batch_size=batch_size, n_sample=n_sample, engine="compiled"))
print(data.clicks, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def main() -> None:
    """All fits."""
    measure(FITS).show("What a fit of 37,483 items adds to the process")


def measure(fits: tuple[tuple[int, int, int, int], ...]) -> Report:
    """One fit after the other; the first is the base; the second has more clicks, the third more units."""
    rows: list[dict[str, Any]] = []
    for sessions, units, batch_size, n_sample in fits:
        command = [sys.executable, "-c", _FIT, *map(str, (sessions, units, batch_size, n_sample))]
        with console.status(f"{sessions:,} sessions, {units} units, batch {batch_size}, {n_sample} samples"):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        clicks, used = done.stdout.split()
        rows.append(
            {"clicks": int(clicks), "units": units, "batch_size": batch_size, "n_sample": n_sample, "mib": float(used)}
        )
    base, clicks_row, units_row = rows[:3]
    ratios = {
        "bytes_per_click": (clicks_row["mib"] - base["mib"]) * 2**20 / (clicks_row["clicks"] - base["clicks"]),
        f"mib_units_{units_row['units']}_to_{base['units']}": units_row["mib"] / base["mib"],
    }
    return Report("training_memory", rows, ratios)


if __name__ == "__main__":
    main()
