"""Who may import whom: read from the source, so that an import inside a function counts as well."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "stream_app", "trainer", "deploy", "bench", "tests")

MAY_IMPORT = {
    "schemas": {"schemas"},
    "stream_app": {"stream_app", "schemas"},
    "trainer": {"trainer", "schemas"},
    "deploy": {"deploy", "schemas", "stream_app", "trainer"},
    "bench": {"bench", "deploy", "schemas", "stream_app", "trainer"},
    "tests": set(PACKAGES),
}

# Outside package -> the files of the product that may know it.
KEPT_IN: dict[str, set[str]] = {
    "faust": {
        "stream_app/kafka/click_reader.py",
        "stream_app/kafka/credentials.py",
        "stream_app/kafka/lag.py",
        "stream_app/kafka/transport.py",
        "stream_app/serve/app.py",
        "stream_app/serve/in_flight.py",
        "stream_app/serve/pipeline.py",
        "stream_app/serve/settling.py",
        "stream_app/serve/shadow_process.py",
        "stream_app/state/store.py",
        "stream_app/state/table.py",
    },
    "mode": set(),
    "aiokafka": {
        "stream_app/kafka/credentials.py",
        "stream_app/kafka/membership.py",
        "stream_app/kafka/plain_consumer.py",
        "stream_app/kafka/transport.py",
    },
    "rocksdict": {
        "stream_app/state/database.py",
        "stream_app/state/last_rankings.py",
        "stream_app/state/store.py",
        "deploy/demo/oracle.py",  # the demo compares the stopped worker's rows
    },
    "fastavro": {"schemas/formats/avro.py"},
    "google.protobuf": {"schemas/formats/protobuf.py"},
    "confluent_kafka.schema_registry": {"schemas/formats/registry.py"},
    "opentelemetry": {"stream_app/serve/click_spans.py", "stream_app/tracing.py"},
    "redis": {"stream_app/api/sink.py", "stream_app/api/stores.py"},
    "starlette": {
        f"stream_app/api/{module}.py"
        for module in ("click_requests", "gate", "page_routes", "problems", "routes", "service")
    },
    "uvicorn": {"stream_app/api/service.py", "stream_app/api/wire.py"},
}

# The folders of each package, from the ground up: one imports only those before it.
FLOORS = {
    "schemas": ("messages", "kafka", "config", "formats", "bundle", "click_files"),
    "stream_app": ("core", "kafka", "state", "serve", "score", "tools", "api"),
    "trainer": (
        "data", "models", "memory", "evaluation", "export", "training", "presets", "search", "service", "commands",
    ),
}  # fmt: skip
PROVIDES = packages_distributions()
# Parts of a declared package that are distributions of their own.
INDIRECT = {"mode-streaming", "llvmlite", "faust-streaming"}

PURE = {"api/latest", "core/session", "core/recommend", "core/scoring", "core/state_codec", "tools/pacing"}
# What a pure module may take from outside: no clock, no files, no network, no threads.
PURE_MAY_IMPORT = {
    "collections",
    "dataclasses",
    "math",
    "msgspec",
    "numpy",
    "schemas",
    "stream_app",
    "struct",
    "typing",
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@cache
def imported(source: Path) -> frozenset[str]:
    """The dotted names of all modules that a file imports."""
    return frozenset(_imported(source))


def _imported(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            assert node.module is not None
            yield node.module


def importers(package: str, of: str) -> set[str]:
    """The files of a package, relative to the root, that import `of` or something in it."""
    return {
        str(source.relative_to(ROOT))
        for source in sources(package)
        if any(name == of or name.startswith(f"{of}.") for name in imported(source))
    }


def test_every_package_is_read() -> None:
    assert all(sources(package) for package in PACKAGES)
    assert "stream_app/serve/app.py" in importers("stream_app", "faust")  # the reader finds what is known to be there


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    forbidden = {other: importers(package, other) for other in PACKAGES if other not in MAY_IMPORT[package]}
    assert {other: files for other, files in forbidden.items() if files} == {}


@pytest.mark.parametrize("package", FLOORS)
def test_folders_import_downward(package: str) -> None:
    floors = FLOORS[package]
    assert {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()} == set(floors)
    upward = [
        (low, high)
        for number, low in enumerate(floors)
        for high in floors[number + 1 :]
        if any(file.startswith(f"{package}/{low}/") for file in importers(package, f"{package}.{high}"))
    ]
    assert upward == []


def test_the_map_of_the_architecture_page_is_true() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package, floors in FLOORS.items():
        for floor in floors:
            doc = ast.get_docstring(ast.parse((ROOT / package / floor / "__init__.py").read_text(encoding="utf-8")))
            assert f"| `{package}/{floor}/` | {(doc or '').splitlines()[0]} |" in page
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w/.]*)`", page)
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("outside", KEPT_IN)
def test_what_few_files_may_know(outside: str) -> None:
    product = ("schemas", "stream_app", "trainer", "deploy")
    assert {file for package in product for file in importers(package, outside)} <= KEPT_IN[outside]


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("schemas", {"trainer", "registry"}),  # pyarrow, where Parquet files are read
        ("stream_app", {"stream", "api", "otel"}),
        ("trainer", {"trainer", "plot", "tune"}),
        ("deploy", {"kafka", "stream", "supply", "trainer"}),
    ],
)
def test_what_is_imported_is_declared(package: str, extras: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    declared = {re.split(r"[\[<>=;~! ]", line)[0].lower() for line in lines}
    modules = {name.split(".")[0] for source in sources(package) for name in imported(source)}
    outside = modules - sys.stdlib_module_names - set(PACKAGES) - {"deploy", "tests"}
    found = {module: {one.lower().replace("_", "-") for one in PROVIDES.get(module, [])} for module in outside}
    assert {module: names for module, names in found.items() if not names & (declared | INDIRECT)} == {}


def test_torch_is_the_trainers() -> None:
    assert importers("trainer", "torch")
    for package in ("schemas", "stream_app"):
        assert importers(package, "torch") == set()


def test_onnx_runtime_is_behind_the_bundle() -> None:
    assert importers("schemas", "onnxruntime") == {"schemas/bundle/runtime.py"}
    for package in ("stream_app", "trainer", "deploy"):
        assert importers(package, "onnxruntime") == set()


def test_what_judges_the_workers_knows_nothing_of_them() -> None:
    """The harness has its own Kafka client, its own reading of the formats and its own arithmetic."""
    judges = {f"tests.harness.{name}" for name in ("history", "oracle", "verdict", "clients", "trend")}
    kafka = {"kafka", "kafka.admin", "kafka.partitioner.default"}
    known = judges | kafka | {"numpy", "numpy.typing", "onnxruntime", "scipy", "tests.patience"}
    for judge in judges:
        outside = {name for name in imported(ROOT / f"{judge.replace('.', '/')}.py") if name not in known}
        assert {name for name in outside if name.split(".")[0] not in sys.stdlib_module_names} == set()


@pytest.mark.parametrize("package", ["schemas", "stream_app", "trainer", "deploy"])
def test_nothing_is_pickled(package: str) -> None:
    for module in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"):
        assert importers(package, module) == set()


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_core_reads_no_clock_and_does_no_io(module: str) -> None:
    source = ROOT / "stream_app" / f"{module}.py"
    assert {name.split(".")[0] for name in imported(source)} <= PURE_MAY_IMPORT


@pytest.mark.parametrize(
    ("module", "never_loads"),
    [
        (
            "stream_app.__main__",
            {"faust", "torch", "numpy", "onnxruntime", "confluent_kafka"},
        ),  # --help answers at once
        # The worker's image has none of them.
        ("stream_app.serve.worker", {"torch", "trainer", "pyarrow", "stream_app.tracing"}),
        ("stream_app.score.service", {"faust", "torch", "numpy", "onnxruntime", "pyarrow"}),
        (
            "stream_app.api.service",
            {"faust", "torch", "pyarrow", "stream_app.tracing"},
        ),  # the API's image has none of them
        (
            "stream_app.api.sink",
            {"faust", "torch", "numpy", "onnxruntime", "pyarrow", "starlette", "stream_app.tracing"},
        ),
        ("stream_app.tools.replay", {"faust", "torch", "pyarrow"}),  # text needs no parser of the trainer's
        ("schemas.bundle.files", {"faust", "torch", "confluent_kafka"}),
    ],
)
def test_what_is_never_loaded(module: str, never_loads: set[str]) -> None:
    """By whatever way: an import that the reader above cannot see, one of a third package's, counts too."""
    code = f"import sys, {module}; print(*sorted({never_loads!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Where kinds of networks are told apart, so that nobody else has to.
TELLS_KINDS_APART = {
    "trainer/training/networks.py",
    "trainer/export/encoders.py",
    "trainer/models",
    "trainer/training/gru",
}
OF_ONE_FAMILY = re.compile("Gru4Rec|gru4rec|GRU4Rec")


def test_no_family_is_named_outside_its_own_modules() -> None:
    """Whoever asks for a model's family has to be changed for the next one: see `trainer/models/base.py`."""
    families = set(
        re.findall(r'^    "([a-z0-9-]+)": "trainer', (ROOT / "trainer/models/registry.py").read_text(), re.MULTILINE)
    )
    assert len(families) > 15
    named = {}
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        file = path.relative_to(ROOT)
        parents = {str(file), *map(str, file.parents)}
        if parents & TELLS_KINDS_APART:
            continue
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found = {str(text) for text in texts if text in families}
        if found := found | set(OF_ONE_FAMILY.findall(path.read_text())):
            named[str(file)] = found
    assert named == {}
