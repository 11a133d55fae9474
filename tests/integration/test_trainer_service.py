"""The whole loop on a real Kafka: clicks in; a verified, announced model out; promote, roll back, stop, start again."""

import json
import re
import shlex
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.shop import Shop, ShopSettings
from schemas.bundle.files import open_bundle
from schemas.messages.announcement import ModelAnnouncement
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.integration.trainer_deployment import Deployment
from tests.patience import PATIENCE
from trainer.__main__ import main
from trainer.service.assembly import championship_of, registry_of
from trainer.service.click_log import ClickLogFolder
from trainer.service.cycle import CycleResult
from trainer.service.gate import best_rivals
from trainer.service.loop import run

NOW = 1_767_225_600_000
SHOP = Shop(ShopSettings(departments=2, brands=3, items_per_line=6))
"""216 items."""


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics()
    return deployment


def produce_history(deployment: Deployment, sessions: int = 900) -> int:
    return deployment.produce(SHOP.history(sessions, before_ms=NOW))


def produce_live(deployment: Deployment, count: int = 6000) -> int:
    """Clicks of the next season: a third of the catalogue is new."""
    return deployment.produce(islice(SHOP.live(NOW), count))


def cycle(deployment: Deployment, stopping: Callable[[], bool] = lambda: False, **overrides: Any) -> CycleResult:
    result = run(deployment.root(**overrides), once=True, stopping=stopping)
    assert result is not None
    return result


def champion(deployment: Deployment) -> ModelAnnouncement:
    announced = deployment.models_topic().current()
    assert announced is not None
    return announced


def test_a_cycle_ends_in_an_announcement_that_a_worker_accepts(deployment: Deployment) -> None:
    produce_history(deployment)
    result = cycle(deployment)
    assert result.outcome == "announced"
    announced = champion(deployment)
    assert announced.version == result.version
    model = open_bundle(announced.uri, manifest_sha256=announced.manifest_sha256)
    metrics = model.manifest.metrics
    assert metrics["champion"] is None
    assert metrics["gate"]["passed"]
    assert metrics["model"]["recall@20"] > 2 * metrics["baselines"]["pop"]["recall@20"]
    assert set(metrics["baselines"]) == {"pop", "s-pop", "markov-chain", "item-knn"}
    assert {of["predictions"] for of in metrics["baselines"].values()} == {metrics["model"]["predictions"]}
    assert "refitted" in metrics["evaluated_weights"]
    assert model.manifest.training["positions"] == {
        str(number): offset for number, offset in ClickLogFolder(deployment.log_dir).scan().next_offsets.items()
    }
    assert model.popularity.sum() == model.manifest.training["window"]["clicks"]


def test_the_second_cycle_starts_from_the_champion_and_follows_the_catalogue(deployment: Deployment) -> None:
    produce_history(deployment)
    first = cycle(deployment)
    assert cycle(deployment).outcome == "skipped"  # nothing new
    produce_live(deployment)
    # A window of a few hours holds today's clicks only: yesterday's items leave, today's enter.
    second = cycle(deployment, window="4h")
    assert second.outcome == "announced"
    registry = registry_of(deployment.root())
    old, new = (registry.open(registry.get(version)) for version in (first.version or "", second.version or ""))
    assert set(new.vocabulary) - set(old.vocabulary)
    assert set(old.vocabulary) - set(new.vocabulary)
    assert new.manifest.training["started_from"] == first.version
    assert new.manifest.metrics["predecessors"] == {}
    compared = new.manifest.metrics["champion"]
    assert compared["version"] == first.version
    assert compared["predictions"] == new.manifest.metrics["model"]["predictions"]
    assert compared["recall@20"] < new.manifest.metrics["model"]["recall@20"]


def test_a_challenger_is_compared_with_the_champions_before_too(deployment: Deployment) -> None:
    produce_history(deployment)
    overrides: dict[str, Any] = {"keep_versions": 1, "gate_margin": 1, "gate_predictions": 1}
    versions = [cycle(deployment, **overrides).version]
    live = SHOP.live(NOW)
    for _ in range(3):
        deployment.produce(islice(live, 2000))
        result = cycle(deployment, **overrides)
        assert result.outcome == "announced"
        versions.append(result.version)
    registry = registry_of(deployment.root())
    metrics = registry.get(versions[-1] or "").manifest.metrics
    assert metrics["champion"]["version"] == versions[-2]
    # They are judged by the same predictions, and stay published for it however few versions are kept.
    assert set(metrics["predecessors"]) == set(versions[:-2])
    assert {of["predictions"] for of in metrics["predecessors"].values()} == {metrics["model"]["predictions"]}
    assert set(metrics["predecessors"]) | {versions[-2]} <= set(metrics["gate"]["ahead"])
    rivals = best_rivals(metrics, 20)[:2]
    assert set(rivals) <= {model.version for model in registry.versions()}


def test_a_challenger_below_the_champion_is_published_and_not_announced(deployment: Deployment) -> None:
    produce_history(deployment)
    first = cycle(deployment)
    produce_live(deployment)
    refused = cycle(deployment, gate_margin=-1)
    assert refused.outcome == "refused"
    assert "against the champion's" in refused.reasons[0]
    assert champion(deployment).version == first.version
    manifest = registry_of(deployment.root()).get(refused.version or "").manifest
    gate = manifest.metrics["gate"]
    assert (gate["passed"], gate["reasons"]) == (False, list(refused.reasons))
    assert gate["predictions"] == manifest.metrics["model"]["predictions"]
    assert 0 < gate["ahead"][first.version]["recall@20"]["standard_error"] < 0.1
    assert manifest.metrics["evaluated_weights"] == "these"
    # What it was trained on is not new any more: the loop does not try the same again and again.
    assert cycle(deployment, gate_margin=-1).outcome == "skipped"


def test_too_little_to_learn_from_is_no_error(deployment: Deployment) -> None:
    assert cycle(deployment).reasons == ("the click log holds no clicks yet",)
    deployment.produce(islice(SHOP.history(50, before_ms=NOW), 100))
    assert "new sessions, a cycle needs 100" in cycle(deployment).reasons[0]
    assert registry_of(deployment.root()).versions() == []
    assert deployment.models_topic().current() is None
    produce_history(deployment)
    first = cycle(deployment, gate_predictions=100_000)  # nobody is replaced by a first model
    assert first.outcome == "announced"
    produce_live(deployment)
    assert "predictions to judge by, 100000 are needed" in cycle(deployment, gate_predictions=100_000).reasons[0]
    assert champion(deployment).version == first.version


def test_clicks_are_collected_while_a_cycle_trains(deployment: Deployment) -> None:
    produce_history(deployment)
    log = ClickLogFolder(deployment.log_dir)
    before: dict[int, int] = {}

    def progress(phase: str, _done: int, _total: int) -> None:
        if phase == "training" and not before:
            before.update(log.scan().next_offsets)
            produce_live(deployment, 100)
            deadline = time.monotonic() + PATIENCE
            while sum(log.scan().next_offsets.values()) < sum(before.values()) + 100:
                assert time.monotonic() < deadline, "nothing was collected during the training"
                time.sleep(0.1)

    root = deployment.root(flush_interval="100ms")
    result = run(root, once=True, stopping=lambda: False, progress=progress)
    assert before
    assert result is not None
    # What came meanwhile is in the log, and new to the next cycle.
    model = registry_of(root).get(result.version or "")
    assert model.manifest.training["positions"] == {str(number): offset for number, offset in before.items()}


def test_a_registry_in_an_object_store(deployment: Deployment, tmp_path: Path) -> None:
    """fsspec's own `memory://` for the store: no rename, no folders; the worker's cache for the copy."""
    produce_history(deployment)
    url = f"memory://{deployment.prefix}"
    result = cycle(deployment, registry=url)
    announced = champion(deployment)
    assert announced.uri == f"{url}/{result.version}"
    model = open_bundle(announced.uri, manifest_sha256=announced.manifest_sha256, cache_dir=tmp_path / "worker")
    assert model.version == result.version
    produce_live(deployment)
    second = cycle(deployment, registry=url)
    assert second.outcome == "announced"
    assert registry_of(deployment.root(registry=url)).get(second.version or "").manifest.training[
        "started_from"
    ] == result.version  # fmt: skip


def test_pruning_asks_the_topic_for_every_alias(deployment: Deployment) -> None:
    produce_history(deployment)
    first = cycle(deployment)
    root = deployment.root(model_alias="canary")
    registry = registry_of(root)
    canary = championship_of(root, registry).promote(registry.get(first.version or ""), "on trial")
    assert championship_of(deployment.root(), registry).protected() == {first.version}
    assert deployment.models_topic().announced() == {"champion": champion(deployment), "canary": canary}


def test_a_kill_between_publishing_and_announcing_is_made_good_by_the_next_start(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    produce_history(deployment)
    with monkeypatch.context() as patched:
        patched.setattr("trainer.service.announce.ModelsTopic.announce", die)
        with pytest.raises(Killed):
            cycle(deployment)
    assert deployment.models_topic().current() is None
    (version,) = [model.version for model in registry_of(deployment.root()).versions()]
    finished = cycle(deployment)
    assert (finished.outcome, finished.version) == ("announced", version)
    assert champion(deployment).version == version


def test_what_was_rolled_back_stays_rolled_back_over_a_restart(deployment: Deployment) -> None:
    produce_history(deployment)
    first = cycle(deployment)
    produce_live(deployment)
    cycle(deployment)
    root = deployment.root()
    championship_of(root, registry_of(root)).roll_back()
    assert cycle(deployment).outcome == "skipped"
    assert champion(deployment).version == first.version


@pytest.mark.parametrize("phase", ["training", "evaluating", "refitting", "checking"])
def test_a_stop_in_any_phase_publishes_nothing(deployment: Deployment, phase: str) -> None:
    produce_history(deployment)
    stopped: list[str] = []

    def progress(now: str, _done: int, _total: int) -> None:
        stopped.extend([now] if now == phase else [])

    result = run(deployment.root(), once=True, stopping=lambda: bool(stopped), progress=progress)
    assert stopped
    assert result is None
    assert registry_of(deployment.root()).versions() == []
    assert deployment.models_topic().current() is None
    assert cycle(deployment).outcome == "announced"


@pytest.fixture
def command(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The program `trainer` in this process: exit code, standard output, standard error."""
    for name, value in deployment.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "100")
    # The logs of this process are pytest's.
    monkeypatch.setattr("trainer.commands.settings.configure_logs", lambda *_, **__: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["trainer", *arguments])
        capsys.readouterr()  # what cycles in this process have told
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


def test_the_commands_list_promote_and_roll_back(
    deployment: Deployment, command: Callable[..., tuple[int, str, str]]
) -> None:
    produce_history(deployment)
    first = cycle(deployment)
    produce_live(deployment)
    second = cycle(deployment)
    assert first.outcome == second.outcome == "announced"
    assert first.version is not None
    assert second.version is not None

    listed = json.loads(command("models", "--json")[1])
    assert [model["version"] for model in listed] == [first.version, second.version]
    assert [model["champion"] for model in listed] == [False, True]
    assert all(0 < model["metrics"]["model"]["mrr@20"] < 1 for model in listed)
    code, table, _ = command("models")
    assert code == 0
    (line,) = [line for line in table.splitlines() if second.version in line]
    assert line.split()[-1] == "champion"

    (deployment.folder / "registry" / "damaged").mkdir()
    (deployment.folder / "registry" / "damaged" / "manifest.json").write_text("{")
    finished = deployment.trainer("models", "--json")
    assert [model["version"] for model in json.loads(ok(finished))] == [first.version, second.version]
    (warning,) = [json.loads(line) for line in finished.stderr.splitlines()]
    assert warning["path"].endswith("/damaged")

    code, told, _ = command("rollback")
    assert (code, told.split(":")[0]) == (0, f"announced {first.version} as champion")
    assert champion(deployment).version == first.version
    assert champion(deployment).why == f"rolled back from {second.version}"
    code, _, error = command("rollback")
    assert code == 2
    assert "has no predecessor that can be served" in error

    code, told, _ = command("promote", second.version, "--why", "it was fine", "--json")
    assert (code, json.loads(told)["why"]) == (0, "it was fine")
    assert champion(deployment).version == second.version
    code, _, error = command("promote", "v9")
    assert code == 2
    assert "has no version v9" in error

    rank = deployment.folder / "registry" / first.version / "rank.onnx"
    rank.write_bytes(rank.read_bytes()[:-1])
    code, _, error = command("promote", first.version)
    assert code == 2
    assert "rank.onnx" in error
    assert champion(deployment).version == second.version


def test_the_loop_runs_cycle_after_cycle_and_stops_on_sigterm(deployment: Deployment) -> None:
    produce_history(deployment)
    process = deployment.start("run", "--every", "2s")
    try:
        await_(lambda: deployment.models_topic().current() is not None, process)
        first = champion(deployment).version
        produce_live(deployment)
        await_(lambda: champion(deployment).version != first, process)
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    told = [json.loads(line) for line in errors.splitlines()]
    outcomes = [line["event"] for line in told if line["event"].startswith("cycle ")]
    assert outcomes.count("cycle announced") >= 2  # the clicks come while the loop runs, and may make a third


def test_sigterm_during_training_stops_at_once(deployment: Deployment) -> None:
    produce_history(deployment)
    process = deployment.start("run", "--once", NEXTCLICK_TRAINER__TRAINING__EPOCHS="10000")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["event"] == "training":
                break
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "stopped during a cycle" in errors
    assert registry_of(deployment.root()).versions() == []


def test_failed_cycles_end_the_loop_when_they_go_on(deployment: Deployment) -> None:
    produce_history(deployment)
    diverges = {
        "LOSS": "bpr-max",
        "ACTIVATION": "linear",
        "OPTIMIZER": "sgd",
        "LEARNING_RATE": "10",
        "MOMENTUM": "0.99",
    }
    training = {f"NEXTCLICK_TRAINER__TRAINING__{name}": value for name, value in (diverges | {"BPREG": "10"}).items()}
    finished = deployment.trainer("run", "--every", "100ms", NEXTCLICK_TRAINER__MAX_FAILURES="2", **training)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].endswith("lower learning_rate (now 10.0) or momentum (now 0.99)")
    assert finished.stderr.count("cycle failed; the next one tries again") == 1


def test_settings_are_shown_with_their_origin(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {one["key"]: one for one in json.loads(command("settings", "--json")[1])}
    assert shown["trainer.training.epochs"] == {
        "key": "trainer.training.epochs",
        "value": 2,
        "origin": "environment NEXTCLICK_TRAINER__TRAINING__EPOCHS",
    }
    monkeypatch.setenv("NEXTCLICK_TRAINER__EVRY", "1h")
    code, _, error = command("settings")
    assert code == 2
    assert "did you mean NEXTCLICK_TRAINER__EVERY" in error


def test_the_commands_of_the_documentation(deployment: Deployment) -> None:
    page = (REPOSITORY / "docs" / "retraining.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert [" ".join(command) for command in commands if command[0] in ("run", "collect")] == [
        "run --every 1h", "run --once", "collect --once", "collect",
    ]  # fmt: skip
    produce_history(deployment)
    for command in commands:
        if command == ["run", "--once"]:
            produce_live(deployment)  # a second model: there is something to roll back
        if command in (["run", "--every", "1h"], ["collect"]):
            run_until_it_has_worked(deployment, command)
        else:
            newest = [model.version for model in registry_of(deployment.root()).versions()][-1]
            ok(deployment.trainer(*(newest if word == "VERSION" else word for word in command)))
    assert len(registry_of(deployment.root()).versions()) == 2


def run_until_it_has_worked(deployment: Deployment, command: list[str]) -> None:
    """Start a command that does not end, wait for a file of the clicks it was given, and stop it."""
    before = len(list(deployment.log_dir.glob("*.parquet")))
    deployment.produce(islice(SHOP.live(NOW + 1), 10))
    process = deployment.start(*command, NEXTCLICK_TRAINER__FLUSH_INTERVAL="200ms")
    try:
        if command[0] == "run":
            await_(lambda: deployment.models_topic().current() is not None, process)
        else:
            await_(lambda: len(list(deployment.log_dir.glob("*.parquet"))) > before, process)
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, errors


def ok(finished: Any) -> str:
    assert finished.returncode == 0, finished.stderr
    output: str = finished.stdout
    return output


def await_(condition: Callable[[], bool], process: Any) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
