"""The comparison of models as a picture, PNG, SVG or PDF by the file's name."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer.errors import TrainingSettingsError
from trainer.evaluation.significance import LEVEL, Judgement

SUFFIXES: Final = (".png", ".svg", ".pdf")
_FIRST, _OTHER, _MARK = "#0b5394", "#8fa8c0", "#222222"


def check_plot(path: Path | None) -> None:
    """Before the work: can the picture be written? Raises :class:`TrainingSettingsError`."""
    if path is not None and path.suffix not in SUFFIXES:
        raise TrainingSettingsError(f"--plot {path}: ends with none of {', '.join(SUFFIXES)}")
    if path is not None and importlib.util.find_spec("matplotlib") is None:
        raise TrainingSettingsError("--plot needs matplotlib, which is not installed: pip install 'nextclick[plot]'")


def plot_comparison(judged: Sequence[Judgement], path: Path, *, k: int, title: str) -> None:
    """A bar a model and measure with its interval, the first model on top and in colour of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [one.name.replace(":", ":\n", 1).replace(",", ",\n") for one in judged]  # options are long
    lines = sum(max(2, 1 + name.count("\n")) for name in names)
    # No pyplot: it would look for a screen, and keep every figure.
    figure = Figure(figsize=(10, 1.6 + 0.21 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, measure, label in zip(axes, (f"recall@{k}", f"mrr@{k}"), (f"Recall@{k}", f"MRR@{k}"), strict=True):
        values = [one.metrics.recall[k] if measure.startswith("recall") else one.metrics.mrr[k] for one in judged]
        low = [value - one.intervals[measure].low for value, one in zip(values, judged, strict=True)]
        high = [one.intervals[measure].high - value for value, one in zip(values, judged, strict=True)]
        axis.barh(
            names,
            values,
            # An interval of draws may, by a hair, not hold the value itself.
            xerr=[[max(0.0, x) for x in low], [max(0.0, x) for x in high]],
            color=[_FIRST, *[_OTHER] * (len(judged) - 1)],
            error_kw={"ecolor": _MARK, "capsize": 3, "elinewidth": 1},
        )
        furthest = max(one.intervals[measure].high for one in judged)
        for row, (value, one) in enumerate(zip(values, judged, strict=True)):
            end = max(value, one.intervals[measure].high)
            axis.text(end + 0.015 * furthest, row, f"{value:.3f}", va="center", fontsize=9)
        axis.set_xlim(0, furthest * 1.25 or 1.0)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}\n{LEVEL:.0%} intervals over sessions", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
