"""The Helm chart against the code; and rendered, against Kubernetes' schemas, where helm and kubeconform are."""

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from schemas.config.settings import load_settings
from stream_app.serve import worker
from stream_app.settings import StreamSettings
from tests.command_lines import is_command
from tests.container_files import REPOSITORY, services
from trainer.service.settings import TrainerRoot

CHART: Final = REPOSITORY / "deploy" / "helm" / "nextclick"
TEMPLATES: Final = {path.stem: path.read_text() for path in (CHART / "templates").glob("*.yaml")}
VALUES: Final[dict[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())
PROGRAMS: Final = {"worker": "stream-app", "api": "stream-app", "trainer": "trainer"}
OPERATORS: Final = "KafkaTopic,KafkaUser,PodMonitor,PrometheusRule,ScaledObject"
"""Kinds of operators, whose schemas are not Kubernetes'."""
KUBERNETES: Final = "1.37.0"
EVERYTHING: Final = {
    "monitoring.enabled": "true",
    "monitoring.labels.release": "prometheus",
    "keda.enabled": "true",
    "keda.authenticationRef": "kafka",
    "kafka.topicPrefix": "shop-a.",
    "secretName": "passwords",
    "tlsSecretName": "ca",
    "registryClaim": "registry",
    "worker.storageClass": "fast",
    "trainer.signingSecretName": "signing",
    "trainer.storageClass": "slow",
    "api.enabled": "true",
    "api.tokenSecretName": "token",
    "sink.enabled": "true",
}
WORKER_ALONE: Final = {
    "score.enabled": "false",
    "trainer.enabled": "false",
    "guard.enabled": "false",
    "createTopics": "false",
}


# -- as it stands -----------------------------------------------------------------------------------------------------


def test_the_values_are_those_of_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(VALUES)] == []
    assert list(validator.iter_errors(VALUES | {"wroker": {}}))
    assert list(validator.iter_errors(VALUES | {"worker": {"replica": 2}}))


def test_the_versions_are_those_of_the_project() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
    for image in PROGRAMS:
        assert VALUES["images"][image] == services()[image]["image"]


def test_its_settings_are_accepted_and_say_what_keda_is_told(tmp_path: Path) -> None:
    file = tmp_path / "nextclick.toml"
    file.write_text(VALUES["settings"])
    stream = load_settings(StreamSettings, config=file, environ={})
    load_settings(TrainerRoot, config=file, environ={})
    keda = VALUES["keda"]
    assert (keda["topic"], keda["consumerGroup"]) == (stream.topics.clicks, stream.app_id)
    assert keda["maxReplicas"] == stream.topics.partitions
    assert keda["minReplicas"] == VALUES["worker"]["replicas"]


def test_every_variable_is_a_setting_and_every_command_exists() -> None:
    text = "\n".join([*TEMPLATES.values(), (CHART / "templates" / "_pods.tpl").read_text()])
    environ = dict(re.findall(r'\{name: (NEXTCLICK_\w+), value: "?([^"}]*)"?\}', text))
    environ.pop("NEXTCLICK_CONFIG")
    environ.pop("NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS")
    environ.pop("NEXTCLICK_TOPICS__PREFIX")
    assert len(environ) > 15
    assert "NEXTCLICK_API__TOKEN" in text
    environ["NEXTCLICK_API__TOKEN"] = "of-the-secret"
    stream = load_settings(StreamSettings, config=None, environ=environ)
    trainer = load_settings(TrainerRoot, config=None, environ=environ)
    assert f"containerPort: {stream.worker.web_port}" in TEMPLATES["worker"]
    assert f"containerPort: {stream.scores.web_port}" in TEMPLATES["score"]
    assert f"containerPort: {trainer.guard.metrics_port}" in TEMPLATES["guard"]
    assert f"containerPort: {stream.api.port}" in TEMPLATES["api"]
    assert f"containerPort: {stream.sink.web_port}" in TEMPLATES["sink"]
    started = re.findall(r"image: \{\{ \.Values\.images\.(\w+) \}\}\n +args: \[(\w+)\]", text)
    assert {name for _, name in started} == {"topics", "worker", "score", "run", "guard", "api", "sink"}
    assert [problem for image, name in started if (problem := is_command([PROGRAMS[image], name]))] == []


def test_processes_have_the_time_that_they_may_take_to_stop() -> None:
    (seconds,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", TEMPLATES["worker"])
    assert int(seconds) > 2 * worker._STOP_SECONDS
    (seconds,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", TEMPLATES["api"])
    (pause,) = re.findall(r"command: \[sleep, \"(\d+)\"\]", TEMPLATES["api"])
    assert int(seconds) > int(pause) + load_settings(StreamSettings, config=None, environ={}).api.stop_timeout


def test_limits_of_memory_are_those_of_compose() -> None:
    for name in ("worker", "score", "trainer", "guard", "api", "sink"):
        limit = services()[name]["deploy"]["resources"]["limits"]["memory"]
        assert VALUES[name]["resources"]["limits"]["memory"] == limit.replace("m", "Mi").replace("g", "Gi")


# -- rendered ---------------------------------------------------------------------------------------------------------


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: `make kit` builds it and runs these tests")
    return found


def run_helm(*arguments: str, values: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    given = [word for key, value in (values or {}).items() for word in ("--set", f"{key}={value}")]
    return subprocess.run(
        [program("helm"), *arguments, *given], capture_output=True, text=True, timeout=120, check=False
    )


def helm(*arguments: str, values: dict[str, str] | None = None) -> str:
    done = run_helm(*arguments, values=values)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(values: dict[str, str] | None = None) -> list[dict[str, Any]]:
    text = helm("template", "shop", str(CHART), "--namespace", "shop", "--kube-version", KUBERNETES, values=values)
    return [one for one in yaml.safe_load_all(text) if one]


def kind(resources: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [one for one in resources if one["kind"] == name]
    return found


def kubernetes_schemas(folder: Path, resources: Iterable[dict[str, Any]]) -> Path:
    """Those of the package kubernetes-validate that these resources need, each complete in its file."""
    spec = importlib.util.find_spec("kubernetes_validate")
    assert spec is not None
    assert spec.origin is not None
    packed = Path(spec.origin).parent / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"
    definitions = json.loads((packed / "_definitions.json").read_text())["$defs"]
    for one in resources:
        group, _, version = one["apiVersion"].rpartition("/")
        file = "-".join([one["kind"].lower(), *filter(None, [group.split(".")[0]]), version]) + ".json"
        if (packed / file).exists():
            text = (packed / file).read_text().replace("/api/_definitions.json#", "#")
            schema = json.loads(text) | {"$defs": definitions}
            del schema["$id"]
            (folder / file).write_text(json.dumps(schema))
    return folder


def test_helm_finds_nothing_wrong() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), values=EVERYTHING)


@pytest.mark.parametrize("values", [{}, EVERYTHING, WORKER_ALONE], ids=["default", "everything", "worker-alone"])
def test_kubernetes_takes_what_it_makes(values: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(
        helm("template", "shop", str(CHART), "--namespace", "shop", "--kube-version", KUBERNETES, values=values)
    )
    schemas = kubernetes_schemas(tmp_path, yaml.safe_load_all(file.read_text()))
    location = f"{schemas}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    check = [program("kubeconform"), "-strict", "-summary", "-output", "json", "-skip", OPERATORS]
    check += ["-kubernetes-version", KUBERNETES, "-schema-location", location, str(file)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["valid"] >= 4
    assert summary["skipped"] == (4 if values is EVERYTHING else 0)
    file.write_text(file.read_text().replace("terminationGracePeriodSeconds", "terminationGraceSeconds"))
    assert subprocess.run(check, capture_output=True, timeout=120, check=False).returncode != 0


def test_every_pod_is_hardened_and_told_where_its_settings_are() -> None:
    pods = [
        one["spec"]["template"]["spec"] for one in rendered(EVERYTHING) if one["kind"] in ("Deployment", "StatefulSet")
    ]
    assert len(pods) == 6
    for pod in pods:
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod["volumes"]} | {"state"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert "cpu" not in container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            paths = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {one["value"] for one in container["env"] if one["name"] == "NEXTCLICK_CONFIG"} <= paths


def test_probes_are_as_the_pages_say() -> None:
    for name in ("StatefulSet", "Deployment"):
        for one in (one for one in rendered(EVERYTHING) if one["kind"] == name):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            probes = {probe: container.get(f"{probe}Probe") for probe in ("startup", "liveness", "readiness")}
            if container["name"] in ("trainer", "guard"):
                assert set(probes.values()) == {None}
                continue
            paths = {probe: found["httpGet"]["path"] for probe, found in probes.items()}
            assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_monitoring_has_the_rules_and_the_dashboard() -> None:
    values = EVERYTHING | {
        "monitoring.runbook": "https://docs.example/runbook.html",
        "monitoring.modelAgeSeconds": "60",
    }
    resources = rendered(values)
    ours = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules.yml").read_text())
    made = kind(resources, "PrometheusRule")["spec"]
    assert [group["name"] for group in made["groups"]] == [group["name"] for group in ours["groups"]]
    alerts = {rule["alert"]: rule for group in made["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts["NextclickLag"]["annotations"]["runbook_url"] == "https://docs.example/runbook.html#nextclicklag"
    assert alerts["NextclickModelOld"]["expr"].endswith("> 60")
    (dashboard,) = [one for one in resources if one["metadata"]["labels"].get("grafana_dashboard")]
    shown = json.loads(dashboard["data"]["nextclick.json"])
    assert shown == json.loads((REPOSITORY / "deploy" / "grafana" / "nextclick.json").read_text())


def test_prometheus_reads_an_api_with_the_token_of_its_clients() -> None:
    resources = rendered(EVERYTHING)
    (api,) = [one for one in resources if one["kind"] == "Deployment" and one["metadata"]["name"] == "shop-api"]
    (container,) = api["spec"]["template"]["spec"]["containers"]
    (given,) = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if one["name"] == "NEXTCLICK_API__TOKEN"]
    monitors = [one["spec"] for one in resources if one["kind"] == "PodMonitor"]
    labels = api["spec"]["template"]["metadata"]["labels"]
    reads = [one for one in monitors if one["selector"]["matchLabels"].items() <= labels.items()]
    ports = {one["name"] for one in container["ports"]}
    (endpoint,) = [end for one in reads for end in one["podMetricsEndpoints"] if end["port"] in ports]
    assert endpoint["authorization"]["credentials"] == given == {"name": "token", "key": "token"}


def test_an_api_without_a_token_is_refused() -> None:
    done = run_helm("template", "shop", str(CHART), "--kube-version", KUBERNETES, values={"api.enabled": "true"})
    assert done.returncode != 0
    assert "api.tokenSecretName: a Secret whose key" in done.stderr


def test_keda_scales_the_workers() -> None:
    resources = rendered(EVERYTHING)
    scaled, workers = kind(resources, "ScaledObject")["spec"], kind(resources, "StatefulSet")
    assert scaled["scaleTargetRef"]["name"] == workers["metadata"]["name"]
    assert "replicas" not in workers["spec"], "a release would undo what KEDA has scaled"
    (trigger,) = scaled["triggers"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts alone"
    environ = {one["name"]: one["value"] for one in workers["spec"]["template"]["spec"]["containers"][0]["env"]}
    environ.pop("NEXTCLICK_CONFIG")
    stream = load_settings(StreamSettings, config=None, environ=environ)
    watched = trigger["metadata"]["topic"], trigger["metadata"]["consumerGroup"]
    assert watched == (stream.topics.clicks, stream.app_id) == ("shop-a.clicks", "shop-a.nextclick")
