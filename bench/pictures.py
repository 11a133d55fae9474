"""The pictures of docs/: the architecture, and what bench/results/ has on latency and quality.

    make pictures

A result is what a benchmark prints last, with `date`, `commit` (which wrote the figures down) and `command`. The same
results make the same bytes. A test compares the pictures with the results, and the results with the pages' tables.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS: Final = Path(__file__).parent / "results"
PICTURES: Final = Path(__file__).parents[1] / "docs" / "pictures"
CATALOGUE: Final = 37_000
"""Items of the family_clicks row that counts."""
_LEAST_MRR: Final = 0.25
"""What ranks worse than this would press all else together."""
_FIRST, _OTHER, _FAR, _INK, _PAPER = "#0b5394", "#8fa8c0", "#c0561f", "#24292f", "#f8f9fb"
_STYLE: Final = {
    "figure.facecolor": _PAPER,  # of its own, or a dark page would show through
    "axes.facecolor": _PAPER,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.sans-serif": ["DejaVu Sans"],  # Matplotlib brings it along: the same places everywhere
    "font.size": 9,
    "svg.fonttype": "none",  # letters as letters, not as outlines
    "svg.hashsalt": "nextclick",
} | dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), _INK)


def main(folder: Path = PICTURES) -> None:
    """Draw all of them into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.svg").write_text(architecture(), encoding="utf-8")
    for name, draw in (("latency", draw_latency), ("quality", draw_quality)):
        _save(draw, _result(name), folder / f"{name}.svg")
    _save(draw_families, _with_cost(_result("families"), _result("family_clicks")), folder / "families.svg")


def _result(name: str) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return kept


def _with_cost(families: dict[str, Any], clicks: dict[str, Any]) -> dict[str, Any]:
    """Of the first log, each family's best: quality, seconds of training, and a click's time beside GRU4Rec's."""
    taken = {row["family"]: row["us_per_click"] for row in clicks["rows"] if row["items"] == CATALOGUE}
    rows: dict[str, dict[str, Any]] = {}
    for row in families["rows"]:
        if row["log"] == families["rows"][0]["log"] and row["family"] in taken:
            one = rows.setdefault(row["family"], {"family": row["family"], "mrr@20": 0.0})
            one["click"] = taken[row["family"]] / taken["gru4rec"]
            one["mrr@20"] = max(one["mrr@20"], row["mrr@20"])
            one.setdefault("seconds", row["training_cpu_seconds"])
    return {**families, "command": 'make bench BENCH="families family_clicks"', "rows": list(rows.values())}


def _save(draw: Callable[["Figure", list[dict[str, Any]]], None], result: dict[str, Any], path: Path) -> None:
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):  # whatever the user's own style is
        figure = Figure()  # no pyplot: it would look for a screen
        draw(figure, result["rows"])
        made = f"{result['date']}, commit {result['commit']}; " if "date" in result else ""
        source = f"{result['command']}; {made}machine: {result['machine']}"
        figure.text(0.01, 0.02, source, fontsize=7, alpha=0.8)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def draw_latency(figure: "Figure", rows: list[dict[str, Any]]) -> None:
    """A panel a catalogue: what half and what 99 % of the clicks wait at most, by clicks a second."""
    catalogues = sorted({row["items"] for row in rows})
    figure.set_size_inches(9.5, 4.2)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.84, bottom=0.21, wspace=0.08)
    panels = figure.subplots(1, len(catalogues), sharey=True, squeeze=False)[0]
    for axes, items in zip(panels, catalogues, strict=True):
        cases = sorted((row for row in rows if row["items"] == items), key=lambda row: int(row["rate"]))
        rates, swaps = [case["rate"] for case in cases], ["swap_p99_ms" in case for case in cases]
        for name, colour in (("p99", _FAR), ("p50", _FIRST)):
            waits = [case[f"{name}_ms"] for case in cases]
            steady = [(rate, wait) for rate, wait, swap in zip(rates, waits, swaps, strict=True) if not swap]
            axes.plot(*zip(*steady, strict=True), color=colour, marker="o", markersize=4, label=name)
            for rate, wait, swap in zip(rates, waits, swaps, strict=True):
                if swap:  # no line leads there: it is another case
                    axes.plot(rate, wait, color=colour, marker="o", markersize=4, markerfacecolor=_PAPER)
                label = f"{wait:.{1 if wait < 10 else 0}f}"
                axes.annotate(label, (rate, wait), (0, 5), textcoords="offset points", ha="center", color=colour)
        axes.set_title(f"{items:,} items", fontsize=10)
        ticks = [f"{rate:,}" + "\nwith a swap" * swap for rate, swap in zip(rates, swaps, strict=True)]
        axes.set_xticks(rates, ticks)
        axes.set_xlim(0, max(rates) * 1.12)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(0, max(row["p99_ms"] for row in rows) * 1.15)
    panels[0].set_ylabel("ms from due to ranking consumed")
    panels[0].legend(loc="upper left", frameon=False)
    figure.supxlabel("clicks a second", fontsize=9, y=0.07)
    title = "How long a click waits for its ranking: half of them at most p50, all but one in a hundred at most p99"
    figure.suptitle(title, y=0.97, fontsize=11)


def draw_quality(figure: "Figure", rows: list[dict[str, Any]]) -> None:
    """A row a model, the first one in a colour of its own; a column a log and measure."""
    models, logs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "log"))
    columns = [(log, measure) for log in logs for measure in ("recall@20", "mrr@20")]
    figure.set_size_inches(11, 1.5 + 0.27 * len(models))
    figure.subplots_adjust(left=0.15, right=0.99, top=0.83, bottom=0.1, wspace=0.08)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (log, measure) in zip(panels, columns, strict=True):
        values = {row["model"]: row[measure] for row in rows if row["log"] == log}
        best = max(values.values())
        for place, model in enumerate(models):
            if model in values:
                axes.barh(place, values[model], color=_OTHER if place else _FIRST)
                axes.text(values[model] + 0.02 * best, place, f"{values[model]:.3f}".lstrip("0"), va="center")
        axes.set_xlim(0, best * 1.25)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        name = {"recall@20": "Recall@20", "mrr@20": "MRR@20"}[measure]
        axes.set_title(f"{log}\n{name}" if measure == "recall@20" else name, fontsize=10, loc="left")
    panels[0].set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    figure.suptitle("How often the next click is among the 20 ranked, and how far up", y=0.98, fontsize=11)


def draw_families(figure: "Figure", rows: list[dict[str, Any]]) -> None:
    """A point a family: quality against a click's time, and against training; dark where no other has both better."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    rows = [row for row in rows if row["mrr@20"] > _LEAST_MRR]
    figure.set_size_inches(11, 7)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.92, bottom=0.13, wspace=0.05)
    costs = {
        "click": f"time of a click beside GRU4Rec's, {CATALOGUE:,} items",
        "seconds": "processor seconds of training",
    }
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True), costs.items(), strict=True):
        for row in rows:
            best = not any(other[cost] <= row[cost] and other["mrr@20"] > row["mrr@20"] for other in rows)
            axes.plot(row[cost], row["mrr@20"], "o", color=_FIRST if best else _OTHER, markersize=6 if best else 4)
            place = (row[cost], row["mrr@20"])
            axes.annotate(row["family"], place, (4, 3), textcoords="offset points", fontsize=7, alpha=0.9)
        axes.set_xscale("log")
        axes.set_xlim(0.85 * min(row[cost] for row in rows), 1.35 * max(row[cost] for row in rows))
        axes.set_xticks({"click": [0.5, 1, 2, 4], "seconds": [10, 20, 50, 100, 200]}[cost])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel(f"MRR@20 without the memory, above {_LEAST_MRR:.2f}".replace("0.", "."))
    figure.suptitle("What the families' quality costs", y=0.97, fontsize=11)


_BOX_STYLE: Final = {
    "group": f'fill="none" stroke="{_OTHER}" stroke-dasharray="5 4"',
    "step": f'fill="#ffffff" stroke="{_INK}"',
    "topic": f'fill="#e3edf7" stroke="{_FIRST}"',
    "store": f'fill="#fbeee6" stroke="{_FAR}"',
    "none": 'fill="none"',
}
_BOXES: Final = (  # kind, x, y, width, height, lines of text; a group's name is at its top
    ("group", 180, 20, 200, 455, "Kafka"),
    ("group", 450, 20, 480, 380, "worker (one or more)"),
    ("group", 450, 485, 480, 145, "trainer"),
    ("none", 20, 40, 110, 50, "consumers"),
    ("none", 20, 255, 110, 50, "producers"),
    ("topic", 200, 45, 160, 40, "rankings"),
    ("topic", 200, 145, 160, 40, "sessions' changelog"),
    ("topic", 200, 260, 160, 40, "clicks"),
    ("topic", 240, 330, 120, 34, "clicks.rejected"),
    ("topic", 240, 420, 120, 34, "models"),
    ("step", 470, 45, 170, 40, "1. send the ranking"),
    ("step", 470, 145, 170, 40, "2. write the row"),
    ("step", 470, 200, 170, 40, "3. acknowledge"),
    ("store", 740, 140, 150, 50, "RocksDB table|a row a session"),
    ("step", 470, 260, 80, 40, "decode"),
    ("step", 580, 260, 120, 40, "read the rows"),
    ("step", 740, 260, 150, 40, "advance, rank|(ONNX Runtime)"),
    ("step", 580, 340, 310, 40, "swap: load, verify, warm up;|then between two batches"),
    ("store", 600, 422, 150, 40, "registry of bundles"),
    ("step", 470, 515, 110, 36, "announce"),
    ("step", 610, 515, 130, 36, "publish"),
    ("step", 770, 515, 120, 36, "gate"),
    ("step", 470, 580, 80, 36, "collect"),
    ("step", 570, 580, 100, 36, "Parquet log"),
    ("step", 690, 580, 60, 36, "fit"),
    ("step", 770, 580, 120, 36, "evaluate"),
)
_ARROWS: Final = (  # the points that each goes through
    "130,280 200,280", "360,280 470,280", "550,280 580,280", "700,280 740,280",  # a click, to its ranking
    "890,280 910,280 910,65 640,65", "470,65 360,65", "200,65 130,65",
    "555,85 555,145", "470,165 360,165", "640,165 740,165", "555,185 555,200", "470,220 415,220 415,268 360,268",
    "780,190 780,225 660,225 660,260", "510,300 510,347 360,347",
    "300,420 300,397 430,397 430,360 580,360", "675,422 675,380", "815,340 815,300",  # a swap
    "220,300 220,598 470,598", "550,598 570,598", "670,598 690,598", "750,598 770,598",  # a training
    "830,580 830,551", "770,533 740,533", "675,515 675,462", "610,533 580,533", "470,533 300,533 300,454",
)  # fmt: skip


def architecture() -> str:
    """Topics, worker and trainer, and the ways of a click, a swap and a training between them."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 950 650" width="950" height="650"'
        ' font-family="sans-serif" font-size="14">',
        f'<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        f'<path d="M0,0 L9,4 L0,8 z" fill="{_INK}"/></marker></defs>',
        f'<rect width="950" height="650" rx="8" fill="{_PAPER}"/>',
        *(
            f'<polyline points="{points}" fill="none" stroke="{_INK}" stroke-width="1.3" marker-end="url(#tip)"/>'
            for points in _ARROWS
        ),
    ]
    for kind, x, y, width, height, text in _BOXES:
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" {_BOX_STYLE[kind]}/>')
        lines = text.split("|")
        left, first = x + width / 2, y + height / 2 + 5 - 8.5 * (len(lines) - 1)
        if kind == "group":
            left, first = x + 10 + 3.5 * len(text), y + 17
        for number, line in enumerate(lines):
            place = f'x="{left:g}" y="{first + 17 * number:g}" text-anchor="middle"'
            parts.append(f'<text {place} fill="{_INK}">{escape(line)}</text>')
    return "\n".join((*parts, "</svg>\n"))


if __name__ == "__main__":
    main()
