"""The tables of docs/families.md, from the results of benchmarks.

    python -m tests.families_page

writes them into the page, between its markers; `tests/unit/test_docs.py` fails while they differ.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from trainer.models.registry import FAMILIES

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "families.md"
RESULTS: Final = ROOT / "bench" / "results"
LOGS: Final = {
    "rsc15_100k": "RSC15, first 100k clicks",
    "serenade_example": "Serenade's example",
    "rsc15_64": "Yoochoose 1/64",
}


def figures() -> str:
    """A table a log."""
    rows = _results("families")
    made = []
    for log, title in LOGS.items():
        of_log = [row for row in rows if row["log"] == log]
        if not of_log:
            continue
        lines = [
            f"### {title}",
            "",
            f"{of_log[0]['predictions']:,} predictions.",
            "",
            "| family | defaults | with memory | tuned | with memory | p | training, CPU s |",
            "|---|---|---|---|---|---|---|",
        ]
        for family in dict.fromkeys([*FAMILIES, *(row["family"] for row in of_log)]):  # several as one at the end
            default, tuned = (
                [row for row in of_log if (row["family"], row["settings"]) == (family, kind)]
                for kind in ("defaults", "tuned")
            )
            if default:
                seconds = f"{mean(row['training_cpu_seconds'] for row in default):.0f}"
                cells = [_quality(of, kind) for of in (default, tuned) for kind in ("", "with memory ")]
                lines.append(f"| `{family}` | {' | '.join(cells)} | {_chance(tuned or default)} | {seconds} |")
        made.append("\n".join(lines))
    return "\n\n".join(made)


def _quality(rows: Sequence[Mapping[str, Any]], kind: str = "") -> str:
    """Recall / MRR, the mean over the seeds."""
    if not rows:
        return ""
    return " / ".join(_three(mean(row[f"{kind}{measure}@20"] for row in rows)) for measure in ("recall", "mrr"))


def _chance(rows: list[Mapping[str, Any]]) -> str:
    """The greatest p of MRR@20 over the seeds."""
    found = [row["p mrr@20"] for row in rows if "p mrr@20" in row]
    return "" if not found else "< .001" if max(found) < 0.001 else _three(max(found))


def found() -> str:
    """The settings that the searches found."""
    rows = {(row["log"], row["family"]): row for row in _results("tuning")}
    logs = [log for log in LOGS if any(of == log for of, _ in rows)]
    lines = [f"| family |{''.join(f' {LOGS[log]} |' for log in logs)}", "|---|" + "---|" * len(logs)]
    for family in FAMILIES:
        cells = [_values(rows[log, family]) if (log, family) in rows else "" for log in logs]
        if any(cells):
            lines.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(row: Mapping[str, Any]) -> str:
    (values,) = [one["values"] for one in row["trials"] if one["trial"] == row["best"]["trial"]]
    return ", ".join(f"`{name}={str(value).lower()}`" for name, value in values.items())


def clicks() -> str:
    rows = _results("family_clicks")
    sizes = sorted({row["items"] for row in rows})
    lines = ["| family |" + "".join(f" {size:,} items |" for size in sizes), "|---|" + "---|" * len(sizes)]
    taken = {(row["family"], row["items"]): row["us_per_click"] for row in rows}
    for family in FAMILIES:
        cells = [f"{taken[family, size] / taken['gru4rec', size]:.1f}" for size in sizes]
        lines.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def libraries() -> str:
    """Of each family the best of the library's runs."""
    theirs, ours = _results("libraries"), _results("families")
    lines = ["| family | clicks | ours | RecBole | its batches | its learning rate |", "|---|---|---|---|---|---|"]
    for log, name in LOGS.items():
        for family in FAMILIES:
            tried = [row for row in theirs if (row["log"], row["family"]) == (log, family)]
            of = [row for row in ours if (row["log"], row["family"], row["settings"]) == (log, family, "defaults")]
            if not tried or not of:
                continue
            best = max(tried, key=lambda row: float(row["recall@20"]))
            rate = f"{best['learning_rate']:g}".removeprefix("0")
            lines.append(f"| `{family}` | {name} | {_quality(of)} | {_quality([best])} | {best['batches']} | {rate} |")
    return "\n".join(lines)


def epochs() -> str:
    rows = {row["family"]: row for row in _results("family_training")}
    lines = ["| family | ours, CPU s | RecBole, CPU s | RecBole to ours |", "|---|---|---|---|"]
    for family in (family for family in FAMILIES if family in rows):
        ours, theirs = rows[family]["epoch_cpu_seconds"], rows[family].get("library_epoch_cpu_seconds")
        beside = f"{theirs:,.0f} | {theirs / ours:.1f}" if theirs else " | "
        lines.append(f"| `{family}` | {ours:,.0f} | {beside} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with every table as it must be."""
    tables = {
        "figures": figures(),
        "settings": found(),
        "libraries": libraries(),
        "epochs": epochs(),
        "clicks": clicks(),
    }
    for name, made in tables.items():
        begin, end = f"<!-- {name} of families -->\n", "<!-- end -->"
        parts = re.split(re.escape(begin) + ".*?" + re.escape(end), page, flags=re.DOTALL)
        assert len(parts) == 2, f"{PAGE.name} must have one place for the {name}"
        page = f"{parts[0]}{begin}\n{made}\n\n{end}{parts[1]}"
    return page


def _results(name: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def _three(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
