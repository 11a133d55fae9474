"""From a downloaded log to sessions: how long, and how much memory? On generated clicks of RSC15's shape.

    python -m bench.preprocessing 30000000

writes so many clicks as a yoochoose-clicks.dat, reads them in a process of its own as `trainer fit` does, and prints
that process's time and greatest resident set. Without a number there are three million.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from bench.generated_clicks import ITEMS, popularity, session_lengths
from bench.report import Report, console

CLICKS = 3_000_000
_SESSIONS_AT_ONCE = 250_000
_READ = """
import sys
from pathlib import Path
from trainer.data.datasets import load
from trainer.data.options import DataOptions
data = load(DataOptions([Path(sys.argv[1])], valid_days=1.0))
print(data.train.clicks + data.test.clicks)
"""


def main(clicks: int = CLICKS) -> None:
    """One log of so many clicks."""
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        log = Path(folder) / "yoochoose-clicks.dat"
        with console.status(f"writing {clicks:,} clicks"):
            write_log(log, clicks)
        with console.status("reading them"):
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", _READ, str(log)], capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "clicks": clicks,
        "clicks_kept": int(done.stdout),
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,  # kilobytes on Linux
    }
    ratios = {"peak_bytes_per_click": row["peak_gib"] * 2**30 / clicks}
    Report("preprocessing", [row], ratios).show("From a downloaded log to sessions")


def write_log(path: Path, clicks: int) -> None:
    """Clicks over half a year, in the form of the RecSys Challenge 2015: session, time, item, category; no header."""
    rng = np.random.default_rng(1)
    share = popularity(ITEMS).cumsum()
    written = 0
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    with path.open("wb") as file:
        first_session = 1
        while written < clicks:
            lengths = session_lengths(_SESSIONS_AT_ONCE, rng)
            session = np.repeat(np.arange(first_session, first_session + len(lengths)), lengths)[: clicks - written]
            begin = rng.integers(1_396_310_400_000, 1_412_035_200_000, len(lengths)).repeat(lengths)[: len(session)]
            within = (
                np.arange(len(session)) - np.concatenate([[0], np.cumsum(lengths)[:-1]]).repeat(lengths)[: len(session)]
            )
            time_of_click = (begin + 40_000 * within).astype("datetime64[ms]")
            table = pa.table(
                {
                    "session": session,
                    "time": np.char.add(np.datetime_as_string(time_of_click), "Z"),
                    "item": 214_500_000 + np.searchsorted(share, rng.random(len(session)) * share[-1]),
                    "category": np.zeros(len(session), np.int64),
                }
            )
            pacsv.write_csv(table, file, options)
            written += len(session)
            first_session += len(lengths)


if __name__ == "__main__":
    main(*(int(number.replace("_", "")) for number in sys.argv[1:2]))
