"""The picture, looked at through what the drawing library was told, and through the files that come out."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.trainer.builders import random_sessions
from trainer.errors import TrainingSettingsError
from trainer.evaluation.plot import check_plot, plot_comparison
from trainer.evaluation.significance import Judgement, judge

SESSIONS = random_sessions(50, items=20)


@pytest.fixture(scope="module")
def judged() -> tuple[Judgement, ...]:
    rng = np.random.default_rng(0)
    ranks = {name: rng.integers(1, 40, SESSIONS.transitions).astype(float) for name in ("gru", "stan:days=5.0", "pop")}
    return judge(ranks, SESSIONS, resamples=100)


def test_an_svg_has_every_model_measure_and_value(tmp_path: Path, judged: tuple[Judgement, ...]) -> None:
    path = tmp_path / "new" / "table.svg"
    with_text(path, judged)
    text = path.read_text()
    for one in judged:
        assert all(part in text for part in one.name.split(":"))
        assert f"{one.metrics.recall[20]:.3f}" in text
        assert f"{one.metrics.mrr[20]:.3f}" in text
    assert "Recall@20" in text
    assert "95% intervals" in text


def with_text(path: Path, judged: tuple[Judgement, ...]) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):  # letters as letters, not as outlines
        plot_comparison(judged, path, k=20, title="a title")


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_files_name_says_the_form(
    tmp_path: Path, judged: tuple[Judgement, ...], suffix: str, begins: bytes
) -> None:
    path = tmp_path / f"table{suffix}"
    check_plot(path)
    plot_comparison(judged, path, k=20, title="a title")
    assert path.read_bytes().startswith(begins)


def test_another_form_is_refused_before_the_work() -> None:
    with pytest.raises(TrainingSettingsError, match=r"ends with none of \.png, \.svg, \.pdf"):
        check_plot(Path("table.bmp"))


def test_models_that_never_hit_are_drawn(tmp_path: Path) -> None:
    never = {"a": np.full(SESSIONS.transitions, 99.0), "b": np.full(SESSIONS.transitions, np.inf)}
    plot_comparison(judge(never, SESSIONS, resamples=100), tmp_path / "table.png", k=20, title="")
    assert (tmp_path / "table.png").stat().st_size > 1000
