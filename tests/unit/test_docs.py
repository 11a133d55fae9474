"""README.md and docs/ against the code: commands, settings, metrics, messages, links and numbers."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from deploy.kafka.jars import kafka_version
from schemas.config.settings import SECTIONS, TopicSettings, given, load_settings
from schemas.config.settings_keys import dotted_keys, field_type, variable_of
from schemas.kafka.topics import topic_table
from schemas.messages import examples
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import Click, RejectReason
from schemas.messages.item import Item
from schemas.messages.ranking import Ranking, RankingReason
from schemas.messages.refused import RefuseReason
from schemas.messages.rejected import RejectedClick
from schemas.messages.rule import Rule, RuleAction
from schemas.messages.score import Moments, Score, Tally
from stream_app import __main__ as stream_command
from stream_app.api.metrics import ApiMetrics, SinkMetrics
from stream_app.api.overview import AlarmName
from stream_app.score.metrics import ScoreMetrics
from stream_app.serve import watchdog, worker
from stream_app.serve.metrics import Metrics
from stream_app.settings import StreamSettings
from tests import families_page, settings_page
from tests.command_lines import MODULES, PROGRAMS, is_command
from tests.container_files import services
from tests.doc_pages import (
    PAGES,
    README,
    REPOSITORY,
    Command,
    anchors,
    block_languages,
    blocks,
    code_spans,
    commands,
    links,
    parse,
    prose,
    table,
)
from trainer.evaluation.baselines import BASELINES, options_of, parse_baselines
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import DEFAULT_FAMILY, Gru4RecSettings
from trainer.presets import load_preset, preset_names
from trainer.search.ablation import ROWS
from trainer.search.search_space import model_space
from trainer.service.guarding import GuardMetrics
from trainer.service.settings import TrainerRoot, root_of

DOCS: Final = REPOSITORY / "docs"
ROOTS: Final = (StreamSettings, TrainerRoot)
KEYS: Final = {key for root in ROOTS for key in dotted_keys(root)}
VARIABLES: Final = {variable_of(tuple(key.split("."))) for key in KEYS} | {"NEXTCLICK_CONFIG"}
NO_SETTINGS: Final = {"NEXTCLICK_WORKER_PORT"}
"""What Kubernetes would set; the page says that it is refused."""
FOREIGN: Final = {
    ".",
    "cat",
    "chmod",
    "cp",
    "curl",
    "docker",
    "git",
    "grep",
    "helm",
    "java",
    "kubectl",
    "node",
    "npm",
    "openssl",
    "pip",
    "printf",
    "redis-cli",
    "systemctl",
    "useradd",
}
"""Programs that are not ours and whose options are not looked at."""
COMPOSE_WITH_SERVICES: Final = ("stop", "start", "restart", "logs", "pull")
UNITS: Final = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0, "minutes": 60.0, "hours": 3600.0, "days": 86_400.0}


def page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


# -- commands ---------------------------------------------------------------------------------------------------------


@every_page
def test_every_command_exists(page: Path) -> None:
    assert [problem for command in commands(page) if (problem := problem_of(command))] == []


@every_page
def test_commands_in_the_text_exist(page: Path) -> None:
    ours = re.compile(r"(stream-app|trainer|make|docker compose)( [\w./-].*)?")
    told = [command for span in code_spans(page) if ours.fullmatch(span) for command in parse(span)]
    assert [problem for command in told if (problem := problem_of(command))] == []


@pytest.mark.parametrize(
    "line",
    [
        "stream-app wroker",
        "stream-app worker --prot 1",
        ".venv/bin/trainer fit --trian x --out y",
        "export KAFKA=1 && trainer promot VERSION",
        "make dmeo",
        "make demo CLICK=file",
        "python -m deploy.kafka --broker 3",
        "python -m deploy.kafak",
        "docker compose exec worker stream-app setings",
        "docker compose exec wroker stream-app settings",
        "docker compose logs wroker",
        "export NEXTCLICK_WORKER__IDLE=1",
        "NEXTCLICK_WORKER__IDLE=1 stream-app worker",
        "pytest tests/nowhere.py",
        "krul http://127.0.0.1/",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert any(problem_of(command) for command in parse(line))


def problem_of(command: Command) -> str | None:
    """What is wrong with a command, None when nothing is."""
    given = [*command.assignments, *(command.words[1:] if command.words[:1] == ("export",) else ())]
    for assignment in given:
        name = assignment.split("=")[0]
        if name.startswith("NEXTCLICK_") and name not in VARIABLES:
            return f"{command.line}: {name} is no setting"
    if not command.words or command.words[0] == "export":
        return None
    problem = _problem_of_program([command.words[0].removeprefix(".venv/bin/"), *command.words[1:]])
    return f"{command.line}: {problem}" if problem else None


def _problem_of_program(words: list[str]) -> str | None:  # noqa: PLR0911 - one for each program
    match words:
        case [program, *_] if program in PROGRAMS:
            return is_command(words)
        case ["make", *arguments]:
            return _problem_of_make(arguments)
        case ["python" | "python3", "-m", module, *options] if module in MODULES:
            return is_command([module, *options])
        case ["python" | "python3", "-m", module, *_]:
            return None if (REPOSITORY / module.replace(".", "/")).with_suffix(".py").exists() else "no such module"
        case ["python", program] if re.fullmatch(r"\w+\.py", program):
            return None  # of the reader's, and shown on the page
        case ["pytest", *arguments]:
            missing = [one for one in arguments if "/" in one and not (REPOSITORY / one.split("::")[0]).exists()]
            return f"no such file: {missing}" if missing else None
        case ["docker", "compose", "exec", *rest]:
            return _problem_of_exec([word for word in rest if word != "-T"])
        case ["docker", "compose", action, *rest] if action in COMPOSE_WITH_SERVICES:
            unknown = [word for word in rest if not word.startswith("-") and word not in services()]
            return f"no such services: {unknown}" if unknown else None
        case ["uv", "pip", "compile", *_]:
            return None
        case [program, *_] if program in FOREIGN:
            return None
        case _:
            return f"{words[0]} is neither ours nor known to this test"


def _problem_of_make(arguments: list[str]) -> str | None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for argument in arguments:
        name = argument.split("=")[0]
        if "=" in argument and f"$({name})" not in makefile:
            return f"the Makefile has no variable {name}"
        target = name.replace(".venv", "$(VENV)")
        if "=" not in argument and not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE):
            return f"the Makefile has no target {name}"
    return None


def _problem_of_exec(words: list[str]) -> str | None:
    if words[0] not in services():
        return f"no such service: {words[0]}"
    return is_command(words[1:]) if words[1] in PROGRAMS else None


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_settings_page_is_what_the_code_says() -> None:
    page = settings_page.PAGE.read_text()
    assert page == settings_page.filled(page), "run `python -m tests.settings_page` and look at the difference"


def test_the_families_page_is_what_was_measured() -> None:
    page = families_page.PAGE.read_text()
    assert page == families_page.filled(page), "run `python -m tests.families_page` and look at the difference"
    told = {
        name
        for row in table(DOCS / "families.md", "| family | source | a session is seen as |")
        for name in re.findall(r"`([a-z0-9-]+)`", row[0])
    }
    assert told == set(FAMILIES)


@every_page
def test_every_setting_that_is_named_exists(page: Path) -> None:
    names = {span for span in code_spans(page) if re.fullmatch(rf"({'|'.join(SECTIONS)})(\.[a-z_]+)+", span)}
    sections = {key.rsplit(".", 1)[0] for key in KEYS}
    assert names - KEYS - sections - {TopicSettings().rejected} == set()
    variables = {name.rstrip("_") for name in re.findall(r"NEXTCLICK_[A-Z0-9_]+", page.read_text())}
    groups = {name for name in variables if any(known.startswith(f"{name}__") for known in VARIABLES)}
    assert variables - VARIABLES - NO_SETTINGS - groups == set()


@every_page
def test_settings_files_are_accepted(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "nextclick.toml"
    for block in blocks(page, "toml"):
        file.write_text(block)
        family = given("trainer.training.family", config=file, environ={}) or DEFAULT_FAMILY
        for root in (StreamSettings, root_of(family)):
            load_settings(root, config=file, environ={})


def test_defaults_told_beside_a_setting_are_the_defaults() -> None:
    told = re.compile(r"`((?:topics|worker|trainer)\.\w+)` \((\d[\d,]*) ?(s|ms|min|minutes|hours|days)?\)")
    found = [(page_id(page), *match.groups()) for page in PAGES for match in told.finditer(prose(page))]
    assert len(found) >= 5
    for where, key, number, unit in found:
        value = float(number.replace(",", "")) * UNITS[unit or ""]
        assert value == _default(key), f"{where}: {key} ({number} {unit})"


def _default(key: str) -> float:
    """A default; times in seconds."""
    for root in ROOTS:
        if field_type(root, tuple(key.split("."))) is not None:
            value: Any = root()
            for name in key.split("."):
                value = getattr(value, name)
            return float(value) / 1000 if key.endswith("_ms") else float(value)
    raise AssertionError(f"no setting {key}")


# -- what operators look at -------------------------------------------------------------------------------------------


METRIC_PAGES: Final = {
    "operations.md": Metrics,
    "online-scores.md": ScoreMetrics,
    "guard.md": GuardMetrics,
    "api.md": ApiMetrics,
    "sink.md": SinkMetrics,
}
METRICS_HEADER: Final = "| metric | type | labels | |"


@pytest.mark.parametrize("page", METRIC_PAGES)
def test_the_metrics_page_has_every_metric(page: str) -> None:
    rows = []
    for metric in vars(METRIC_PAGES[page]()).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if isinstance(metric, Counter) else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append([f"`{name}`", metric._type, labels, metric._documentation])
    assert table(DOCS / page, METRICS_HEADER) == rows


@every_page
def test_metrics_that_are_named_exist(page: Path) -> None:
    known = {cells[0].strip("`") for page in METRIC_PAGES for cells in table(DOCS / page, METRICS_HEADER)}
    named = {span for span in code_spans(page) if span.startswith("nextclick_")}
    assert named <= known


def test_the_page_s_alarms_are_those_of_the_code() -> None:
    assert [row[0].strip("`") for row in table(DOCS / "page.md", "| alarm | raised when |")] == list(AlarmName)


def test_the_exit_codes_are_those_of_the_code() -> None:
    codes = [int(row[0]) for row in table(DOCS / "operations.md", "| code | `stream-app worker` | what to do |")]
    assert codes == [worker.EXIT_OK, worker.EXIT_FAILED, stream_command.EXIT_USAGE, watchdog.EXIT_STALLED]


def test_the_readme_names_the_versions() -> None:
    requires = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert requires
    *first, last = [f"3.{minor}" for minor in range(int(requires[1]), int(requires[2]))]
    assert f"Python {', '.join(first)} or {last}" in README.read_text()
    assert set(re.findall(r"Apache Kafka (\d[\d.]*\d)", README.read_text())) == {kafka_version()}


# -- the trainer's tables ---------------------------------------------------------------------------------------------


def test_the_reproduction_page_has_every_preset_and_its_figures() -> None:
    rows = []
    for name in preset_names():
        preset = load_preset(name)
        for one in preset.published:
            figures = [f"{of[20]:.4f}" if 20 in of else "" for of in (one.recall, one.mrr, one.ndcg)]
            rows.append([f"`{name}`", preset.name_of(one), *figures])
    assert table(DOCS / "reproduce.md", "| preset | of | Recall@20 | MRR@20 | NDCG@20 |") == rows


def test_the_evaluation_page_has_every_baseline_and_option() -> None:
    described = [
        name for row in table(DOCS / "evaluation.md", "| name | what it does |") for name in row[0].split(", ")
    ]
    assert described == [f"`{name}`" for name in BASELINES]
    told = {row[0].strip("`"): row[1] for row in table(DOCS / "evaluation.md", "| name | options and their defaults |")}
    assert set(told) == {name for name in BASELINES if options_of(name)}
    for name, text in told.items():
        pairs = [span for span in re.findall(r"`([^`]+)`", text) if "=" in span]
        (spec,) = parse_baselines(f"{name}:{','.join(pairs)}")
        assert spec.options == options_of(name), name


def test_baselines_with_options_can_be_given() -> None:
    told = [span for page in PAGES for span in code_spans(page) if re.fullmatch(rf"({'|'.join(BASELINES)}):\S+", span)]
    assert len(told) >= 8
    for span in told:
        assert parse_baselines(span)


def test_the_ablation_page_has_every_row() -> None:
    rows = [
        [f"`{row.name}`", ", ".join(f"`{name}={value}`" for name, value in row.changes.items()), row.tells]
        for row in ROWS
    ]
    assert table(DOCS / "ablation.md", "| row | changes | what the difference tells |") == rows


def test_the_tuning_page_has_every_range_and_baseline() -> None:
    rows = table(DOCS / "tuning.md", "| for | ranges |")
    told = [re.sub(r"\\\|", "|", span) for row in rows for span in re.findall(r"`([a-z_]+=[^`]+)`", "|".join(row[1:]))]
    assert told == [str(one) for one in model_space(Gru4RecSettings(), {"bpr-max"})]
    prose_of_it = prose(DOCS / "tuning.md")
    assert all(f"`{name}`" in prose_of_it for name in BASELINES if settings_class(name).search)


# -- messages ---------------------------------------------------------------------------------------------------------


def messages(page: Path) -> list[dict[str, Any]]:
    return [json.loads(block) for block in blocks(page, "json")]


def as_json(message: msgspec.Struct) -> Any:
    return json.loads(msgspec.json.encode(message))


def test_the_messages_are_those_of_the_schemas() -> None:
    click, ranking = as_json(examples.CLICK), as_json(examples.RANKING)
    assert messages(README) == [click, ranking]
    assert messages(DOCS / "messages.md") == [
        click,
        ranking,
        as_json(examples.REJECTED_CLICK),
        as_json(examples.SCORE),
        as_json(examples.MODEL_ANNOUNCEMENT),
    ]
    assert messages(DOCS / "items-and-rules.md") == [as_json(examples.ITEM), as_json(examples.RULE)]
    assert messages(DOCS / "experiments.md") == [as_json(examples.SPLIT)]


def test_the_items_page_has_every_field_and_reason() -> None:
    page = DOCS / "items-and-rules.md"
    for header, struct in (("| of an item | |", Item), ("| of a rule | |", Rule)):
        fields = [name for row in table(page, header) for name in re.findall(r"`(\w+)`", row[0])]
        assert fields == [field.encode_name for field in msgspec.structs.fields(struct)]
    assert [row[0].strip("`") for row in table(page, "| action | |")] == list(RuleAction)
    reasons = [reason for reason in RefuseReason if reason != RefuseReason.BAD_SPLIT]
    assert [row[0].strip("`") for row in table(page, "| reason | |")] == reasons


def test_the_messages_page_has_every_field_and_reason() -> None:
    page = DOCS / "messages.md"
    text = page.read_text()
    for struct in (Click, Ranking, RejectedClick, ModelAnnouncement, Score, Tally, Moments):
        assert [name for name in struct.__struct_fields__ if f'"{name}"' not in text] == []
    fields = [name for row in table(page, "| field | | |") for name in re.findall(r"`(\w+)`", row[0])]
    assert fields == list(Click.__struct_fields__)
    required = {row[0].strip("`"): row[1] for row in table(page, "| field | | |")}
    optional = {field.name for field in msgspec.structs.fields(Click) if not field.required}
    assert {name for name, how in required.items() if how == "optional"} == optional
    fields = [name for row in table(page, "| field | |") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(fields) == sorted(Ranking.__struct_fields__)
    found = [
        [row[0].strip("`") for row in rows]
        for rows in (
            _table_after(page, "## Rankings", "| reason | |"),
            _table_after(page, "## Rejected", "| reason | |"),
        )
    ]
    assert found == [[str(reason) for reason in RankingReason], [str(reason) for reason in RejectReason]]


def _table_after(page: Path, heading: str, header: str) -> list[list[str]]:
    rest = page.read_text().split(heading)[1].split(f"{header}\n|---|---|\n")[1]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rest.split("\n\n")[0].splitlines()]


def test_the_messages_page_has_every_topic() -> None:
    settings = StreamSettings()
    specs = topic_table(
        settings.topics, settings.worker.app_id, session_ttl_ms=1, idle_gap_ms=1, items=True, rules=True, splits=True
    )
    rows = table(DOCS / "messages.md", "| topic | setting | key | who writes | who reads |")
    assert [(row[0].strip("`"), row[2].replace("session id", "session_id")) for row in rows] == [
        (spec.name, spec.key) for spec in specs
    ]
    for name, setting, *_ in rows[:5]:
        assert getattr(settings.topics, setting.strip("`").removeprefix("topics.")) == name.strip("`")


# -- the consumer's ten lines -----------------------------------------------------------------------------------------


@pytest.fixture
def once() -> Callable[..., Iterator[dict[str, Any]]]:
    (example,) = blocks(DOCS / "guarantees.md", "python")
    namespace: dict[str, Any] = {}
    exec(compile(example, "docs/guarantees.md", "exec"), namespace)
    found: Callable[..., Iterator[dict[str, Any]]] = namespace["once"]
    return found


def ranking(offset: int, partition: int = 3, version: str = "v1") -> dict[str, Any]:
    changed = msgspec.structs.replace(
        examples.RANKING,
        source=msgspec.structs.replace(examples.RANKING.source, offset=offset, partition=partition),
        model_version=version,
    )
    found: dict[str, Any] = as_json(changed)
    return found


def test_the_example_drops_repetitions(once: Callable[..., Iterator[dict[str, Any]]]) -> None:
    # A crash after 8, whose 7 and 8 come again, 8 from another model; then a late first one, 5, of a frozen worker's.
    came = [ranking(6), ranking(7), ranking(8), ranking(7), ranking(8, version="v2"), ranking(9), ranking(5)]
    came.append(ranking(9, partition=4))
    kept = [(one["source"]["partition"], one["source"]["offset"], one["model_version"]) for one in once(came)]
    assert kept == [(3, 6, "v1"), (3, 7, "v1"), (3, 8, "v1"), (3, 9, "v1"), (3, 5, "v1"), (4, 9, "v1")]


def test_the_example_remembers_as_many_as_it_says(once: Callable[..., Iterator[dict[str, Any]]]) -> None:
    came = [ranking(offset) for offset in (1, 2, 3, 3, 1)]
    assert [one["source"]["offset"] for one in once(came, remembered=2)] == [1, 2, 3, 1]


@every_page
def test_python_examples_are_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page_id(page), "exec")


def test_programs_to_save_hide_no_module() -> None:
    """`python -m` looks in its own folder first: beside a `click.py` uvicorn did not start, and with it no demo."""
    told = [name for page in PAGES for name in re.findall(r"`(\w+)\.py`:\n", page.read_text())]
    assert "history" in told
    assert [name for name in told if find_spec(name) is not None] == []


def test_the_programs_of_the_clients_page_are_the_files_that_a_test_runs() -> None:
    """`tests/integration/test_clients.py` runs them."""
    page, suffixes = DOCS / "clients.md", {".py": "python", ".java": "java", ".mjs": "javascript"}
    files = {file.name: file for file in (DOCS / "clients").iterdir() if file.suffix in suffixes}
    told = re.findall(r"^`([\w.]+)`:\n\n```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert [(name, language, body) for name, language, body in told] == [
        (name, suffixes[files[name].suffix], files[name].read_text()) for name, *_ in told
    ]
    assert sorted(name for name, *_ in told) == sorted(files)


# -- pages ------------------------------------------------------------------------------------------------------------


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    listed = {link for link in links(DOCS / "README.md") if not link.startswith("..")}
    pages = {str(page.relative_to(DOCS)) for page in DOCS.glob("**/*.md")} - {"README.md"}
    assert listed == pages, "docs/README.md lists every page, with the question that it answers"


@every_page
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    assert block_languages(page) <= {"sh", "", "text", "json", "toml", "python", "yaml", "java", "javascript"}


def test_every_row_of_the_guarantees_names_tests_that_exist() -> None:
    rows = [line for line in (DOCS / "guarantees.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 25
    for row in rows:
        shown = re.findall(r'\[●\]\(\.\./(tests/\S+\.py) "(test_\w+)"\)', row)
        assert shown, f"no test shows it: {row[:80]}"
        for file, name in shown:
            source = (REPOSITORY / file).read_text()
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{file} has no {name}"


def test_the_site_builds(tmp_path: Path) -> None:
    """With every page in its navigation, and no link or anchor that leads nowhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # with --quiet it counts no warnings
    built = subprocess.run(
        [*command, "-f", DOCS / "site" / "mkdocs.yml", "-d", tmp_path], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in DOCS.glob("*.md")} - {"README"}
    assert pages < {page.stem for page in tmp_path.glob("*.html")}
