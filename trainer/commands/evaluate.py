"""``trainer evaluate``: bundles and baselines on the same held-out clicks; table and report out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from schemas.errors import SchemaError
from trainer.commands.fit import TieMode
from trainer.errors import TrainerError, TrainingSettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from schemas.model import Model
    from trainer.datasets import Dataset
    from trainer.evaluate import Scorer
    from trainer.significance import Difference, Interval, Judgement

_BAD_INPUT = 2


def evaluate(
    *,
    train: Annotated[Path, typer.Option(help="Clicks that the baselines learn from; any form that `fit` reads.")],
    test: Annotated[
        Path | None, typer.Option(help="Clicks to evaluate on. Without it the newest sessions of --train are held out.")
    ] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Model bundle; several are compared with the first.")] = None,
    baselines: Annotated[
        str, typer.Option(help="Names with commas between them, such as stan,vs-knn; `all` or `none`.")
    ] = "all",
    out: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    valid_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of the sessions to hold out.")] = 0.1,
    valid_days: Annotated[
        float | None, typer.Option(min=0, help="Hold out by time instead: last click within so many days.")
    ] = None,
    test_fraction: Annotated[
        float,
        typer.Option(min=0, max=1, help="Evaluate on this newest share, behind --valid-fraction: .2 is 70/10/20."),
    ] = 0.0,
    idle_gap: Annotated[
        float | None, typer.Option(min=0, help="Minutes without a click after which a session id starts anew.")
    ] = None,
    min_support: Annotated[int, typer.Option(min=1, help="Clicks that an item of the vocabulary has at least.")] = 1,
    core: Annotated[
        int, typer.Option(min=1, help="Before the split, drop items of fewer clicks and short sessions, repeatedly.")
    ] = 1,
    collapse_repeats: Annotated[
        bool, typer.Option(help="Before the split, keep one of the same clicks in a row.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option(help="Count rows that are no clicks, and go on.")] = False,
    k: Annotated[int, typer.Option(min=1, help="The k of the table and of the tests.")] = 20,
    ties: Annotated[
        TieMode, typer.Option(help="Whether an equal score ranks before the target.")
    ] = TieMode.CONSERVATIVE,
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap and of the paired test.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of those draws.")] = 42,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the arithmetic.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare model bundles and baselines on held-out clicks, with intervals and paired significance."""
    errors = Console(stderr=True)
    try:
        # Here, because torch takes seconds to import.
        from schemas.bundle import open_bundle
        from trainer.baselines import BASELINES
        from trainer.datasets import DataOptions, load
        from trainer.evaluate import DEFAULT_KS, ranks_of, ties_undecided
        from trainer.fit import use_threads
        from trainer.model_scorer import ModelScorer
        from trainer.significance import judge

        names = _chosen(baselines, tuple(BASELINES))
        bundles = [open_bundle(path, threads=threads) for path in model or []]
        if not bundles and not names:
            raise TrainingSettingsError("nothing to evaluate: name a --model, or some --baselines")
        use_threads(threads)
        data = load(
            DataOptions(
                train,
                test,
                valid_fraction,
                valid_days,
                idle_gap,
                min_support,
                skip_bad_rows=skip_bad_rows,
                collapse_repeats=collapse_repeats,
                core_support=core,
                test_fraction=test_fraction,
                part="test" if test_fraction else "valid",
            )
        )

        def scorers() -> "Iterator[Scorer]":
            """One at a time: a baseline may hold tables of the size of the log."""
            for bundle in bundles:
                yield ModelScorer(bundle, data.test)
            for name in names:
                yield BASELINES[name](data.train)

        ranks = {}
        for scorer in scorers():
            if k >= scorer.depth and ties_undecided(scorer, data.test):
                raise TrainingSettingsError(f"--k {k}: {scorer.name} ranks {scorer.depth} items, and needs more than k")
            if scorer.name in ranks:
                raise TrainingSettingsError(f"--model: {scorer.name} is named twice")
            with errors.status(f"evaluating {scorer.name}"):
                ranks[scorer.name] = ranks_of(scorer, data.test, ties=ties.value)
        ks = sorted({k, *(one for one in DEFAULT_KS if one < k)})
        judged = judge(ranks, data.test, ks=ks, resamples=resamples, seed=seed)
        seen = [bundle.version for bundle in bundles if _has_seen(bundle, data)]
        report = _report(judged, data, k=k, ties=ties.value, resamples=resamples, seed=seed, seen=seen)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except (TrainerError, SchemaError, OSError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(_BAD_INPUT) from error
    for name in seen:
        errors.print(
            f"warning: {name} was trained on sessions as late as the ones it is evaluated on; its figures flatter it",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if as_json:
        typer.echo(json.dumps(report))
    else:
        Console().print(_table(judged, data, k))


def _chosen(given: str, known: "Sequence[str]") -> list[str]:
    if given in {"all", "none"}:
        return list(known) if given == "all" else []
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise TrainingSettingsError(f"--baselines: no {', '.join(unknown)}; there are {', '.join(known)}")
    return list(dict.fromkeys(names))


def _has_seen(bundle: "Model", data: "Dataset") -> bool:
    """Whether the bundle's training window reaches into the held-out sessions, as far as both have times."""
    window = bundle.manifest.training.get("window")
    last = window.get("to") if isinstance(window, dict) else None
    return data.test.timed and isinstance(last, int) and last >= int(data.test.ends[0])


def _report(
    judged: "Sequence[Judgement]", data: "Dataset", *, k: int, ties: str, resamples: int, seed: int, seen: list[str]
) -> dict[str, Any]:
    from trainer.report import metrics_report
    from trainer.significance import LEVEL

    def interval(of: "Interval") -> list[float]:
        return [of.low, of.high]

    def difference(of: "Difference") -> dict[str, Any]:
        return {
            "value": of.value,
            "interval": interval(of.interval),
            "standard_error": of.error,
            "p": of.p,
            "p_adjusted": of.p_adjusted,
        }

    return {
        "models": {
            one.name: {
                **metrics_report(one.metrics),
                "intervals": {measure: interval(of) for measure, of in one.intervals.items()},
                "against_first": {measure: difference(of) for measure, of in one.against_first.items()},
                "trained_on_test": one.name in seen,
            }
            for one in judged
        },
        "first": judged[0].name,
        "k": k,
        "ties": ties,
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "predictions": judged[0].metrics.predictions,
        "data": {
            "items": len(data.train.item_ids),
            **{
                part: {"sessions": len(of), "clicks": of.clicks, "transitions": of.transitions}
                for part, of in (("train", data.train), ("test", data.test))
            },
            "bad_rows": data.bad_rows,
        },
    }


def _table(judged: "Sequence[Judgement]", data: "Dataset", k: int) -> Table:
    predictions = judged[0].metrics.predictions
    table = Table(
        title=f"{predictions:,} predictions in {len(data.test):,} sessions",
        caption=f"95 % intervals over sessions; difference from {judged[0].name}, p after Holm",
    )
    table.add_column("model", no_wrap=True)
    for title in (f"Recall@{k}", "difference", f"MRR@{k}", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in judged:
        cells = []
        for measure, value in ((f"recall@{k}", one.metrics.recall[k]), (f"mrr@{k}", one.metrics.mrr[k])):
            interval, against = one.intervals[measure], one.against_first.get(measure)
            cells.append(f"{value:.4f}\n{interval.low:.4f}-{interval.high:.4f}")
            cells.append(f"{against.value:+.4f}\np {against.p_adjusted:.4f}" if against else "")
        table.add_row(one.name, *cells)
    return table
