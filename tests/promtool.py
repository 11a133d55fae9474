"""Prometheus' own checker on our rules, without a server: its rule tests on metrics that real processes gave."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.container_files import REPOSITORY

RULES: Final = REPOSITORY / "deploy" / "prometheus" / "rules.yml"
_PEACE: Final = 60
"""Minutes before something breaks."""
_LOOK: Final = 35
"""Minutes in which it is looked what fires."""


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run it; the test is skipped where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: install Debian's package prometheus")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def assert_firing(expected: Iterable[str], before: Mapping[str, str], after: Mapping[str, str], folder: Path) -> None:
    """The shipped rules fire exactly these alerts when processes whose metrics were `before` for an hour show `after`.

    Both hold the text of `/metrics` by the job's name; a job that is not in `after` has gone. What broke goes on: each
    minute counters grow as much as between the two.
    """
    series = [*_series(before, after)]
    firing = f'group by (alertname) (last_over_time(ALERTS{{alertstate="firing"}}[{_LOOK}m]))'
    wanted = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    checks = [
        {"expr": firing, "eval_time": f"{_PEACE - 1}m", "exp_samples": []},
        {"expr": firing, "eval_time": f"{_PEACE + _LOOK}m", "exp_samples": wanted},
    ]
    test = folder / "alerts.test.yml"
    test.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(RULES)],
                "evaluation_interval": "1m",
                "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": checks}],
            }
        )
    )
    done = promtool("test", "rules", test)
    assert done.returncode == 0, done.stdout + done.stderr


def _series(before: Mapping[str, str], after: Mapping[str, str]) -> Iterable[dict[str, str]]:
    for job, page in before.items():
        gone = job not in after
        yield {"series": f'up{{job="{job}"}}', "values": f"1x{_PEACE} {0 if gone else 1}x{_LOOK}"}
        was, now = _samples(job, page), _samples(job, after.get(job, ""))
        for series in was | now:
            values = f"{was[series][0]}x{_PEACE}" if series in was else f"_x{_PEACE + 1}"
            if series in now:
                value, counts = now[series]
                pace = value - was.get(series, (0.0, counts))[0] if counts else 0.0
                yield {"series": series, "values": f"{values} {value}+{pace}x{_LOOK}"}
            else:
                yield {"series": series, "values": f"{values} stale"}


def _samples(job: str, page: str) -> dict[str, tuple[float, bool]]:
    """The value of each series of a page, and whether it counts up."""
    return {
        f"{sample.name}{{{','.join(f'{name}={json.dumps(text)}' for name, text in labels.items())}}}": (
            sample.value,
            family.type in ("counter", "histogram"),
        )
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        for labels in [{"job": job} | sample.labels]
    }
