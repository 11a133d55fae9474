"""Rows of a benchmark that takes hours, kept in a file one by one: a run that was stopped goes on from there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.report import Report, console, machine
from schemas import durable

FOLDER: Final = Path(__file__).with_name("results")


class Kept:
    """What bench/results/<name>.json has, or the file that RESULTS (environment) names. A row is never measured twice:
    delete its line to have that done.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._path = Path(os.environ.get("RESULTS", FOLDER / f"{name}.json"))
        self.rows: list[Mapping[str, Any]] = []
        if self._path.exists():
            self.rows = json.loads(self._path.read_text())["rows"]

    def has(self, case: Mapping[str, Any]) -> bool:
        """Whether there is a row of all these parameters."""
        return any(case.items() <= row.items() for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        head = json.dumps({"bench": self._name, "machine": machine()})[:-1]
        lines = ",\n  ".join(json.dumps(row) for row in self.rows)
        durable.replace(self._path, f'{head}, "rows": [\n  {lines}\n]}}\n'.encode())
        console.print_json(json.dumps(row))

    def show(self, title: str) -> None:
        Report(self._name, self.rows).show(title)


def chosen(variable: str, usual: str) -> list[str]:
    """What an environment variable names, with commas."""
    return os.environ.get(variable, usual).split(",")
