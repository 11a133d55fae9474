"""Prometheus' rules and the Grafana dashboard against the metrics that the code has, and against the runbook."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client.metrics import MetricWrapperBase

from stream_app.api.metrics import ApiMetrics, SinkMetrics
from stream_app.score.metrics import ScoreMetrics
from stream_app.serve.metrics import Metrics
from stream_app.settings import StreamSettings
from tests.container_files import REPOSITORY, environment_of, services
from tests.doc_pages import anchors, blocks, table
from tests.promtool import RULES, promtool, rules
from trainer.service.guarding import GuardMetrics

RUNBOOK: Final = REPOSITORY / "docs" / "runbook.md"
DASHBOARD: Final = REPOSITORY / "deploy" / "grafana" / "nextclick.json"
ALERTS: Final = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED: Final = {rule["record"] for rule in rules() if "record" in rule}


def registered() -> set[str]:
    """The name of every sample that a process of ours can show."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        metric._name + suffix
        for process in (Metrics(), ScoreMetrics(), GuardMetrics(), ApiMetrics(), SinkMetrics())
        for metric in vars(process).values()
        if isinstance(metric, MetricWrapperBase)
        for suffix in suffixes.get(metric._type or "", ("",))
    }


def unknown_metrics(expression: str) -> set[str]:
    """Names of ours in an expression that nothing shows or records."""
    named = set(re.findall(r"\b(?:job:|job_variant:|instance:)?nextclick_[a-zA-Z0-9_:]+", expression))
    return named - registered() - RECORDED


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def dashboard_expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    yield from (one["expr"] for one in dashboard["annotations"]["list"])
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_rules_are_rules_and_pass_their_own_tests() -> None:
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", RULES.with_name("rules.test.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_of_the_rules_exists() -> None:
    assert {name for rule in rules() for name in unknown_metrics(rule["expr"])} == set()
    assert unknown_metrics("rate(nextclick_clicks[5m])") == {"nextclick_clicks"}, "a counter's name ends in _total"


def test_every_alert_has_tests_of_both_kinds() -> None:
    told: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for test in yaml.safe_load(RULES.with_name("rules.test.yml").read_text())["tests"]:
        for one in test["alert_rule_test"]:
            told[one["alertname"]].add(bool(one.get("exp_alerts")))
    assert {name for name, kinds in told.items() if kinds != {True, False}} == set()


def test_every_alert_has_a_section_in_the_runbook_and_leads_there() -> None:
    for name, rule in ALERTS.items():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert REPOSITORY / page == RUNBOOK
        assert anchor == name.lower()
        assert anchor in anchors(RUNBOOK)
        text = RUNBOOK.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert text.startswith("\n**Symptom**"), name
        assert blocks(text, "sh"), f"{name} has no first command"
    rows = table(RUNBOOK, "| alert | severity | fires when | for |")
    assert [(re.sub(r"\[(\w+)\].*", r"\1", row[0]), row[1], row[3].replace(" min", "m")) for row in rows] == [
        (name, rule["labels"]["severity"], rule.get("for", "")) for name, rule in ALERTS.items()
    ]


def test_every_metric_of_the_dashboard_exists() -> None:
    expressions = list(dashboard_expressions())
    assert len(expressions) > 30
    assert {name for one in expressions for name in unknown_metrics(one)} == set()


def test_the_dashboard_is_one_that_grafana_takes(tmp_path: Path) -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another"
        assert at["x"] + at["w"] <= 24
        taken |= cells
    written = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__(rate_)?interval", "5m", one).replace("$job", ".*")}
        for number, one in enumerate(dashboard_expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": written}]}))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_of_compose_reads_every_process_where_it_listens() -> None:
    config = yaml.safe_load(RULES.with_name("prometheus.yml").read_text())
    found = {
        name: one["dns_sd_configs"][0]["port"]
        for one in config["scrape_configs"]
        for name in one["dns_sd_configs"][0]["names"]
    }
    ports = {
        "worker": "NEXTCLICK_WORKER__WEB_PORT",
        "score": "NEXTCLICK_SCORES__WEB_PORT",
        "guard": "NEXTCLICK_GUARD__METRICS_PORT",
        "sink": "NEXTCLICK_SINK__WEB_PORT",
    }
    listening = {name: int(environment_of(services()[name], {})[variable]) for name, variable in ports.items()}
    assert found == listening
    jobs = [one["job_name"] for one in config["scrape_configs"]]
    (down,) = [rule["expr"] for rule in rules() if rule.get("alert") == "NextclickDown"]
    (pattern,) = re.findall(r'job=~"([^"]+)"', down)
    assert all(re.fullmatch(pattern, job) for job in jobs)
    mounted = {volume.split(":")[1] for volume in services()["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= mounted


def test_the_configuration_is_one_that_prometheus_takes() -> None:
    checked = promtool("check", "config", RULES.with_name("prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_collector_of_opentelemetry_reads_what_prometheus_reads(tmp_path: Path) -> None:
    (example,) = blocks(REPOSITORY / "docs" / "tracing.md", "yaml")
    collector = yaml.safe_load(example)
    for pipeline in collector["service"]["pipelines"].values():
        assert set(pipeline["receivers"]) <= collector["receivers"].keys()
        assert set(pipeline["exporters"]) <= collector["exporters"].keys()
    scraped = collector["receivers"]["prometheus"]["config"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(scraped))
    checked = promtool("check", "config", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    targets = [
        target for job in scraped["scrape_configs"] for one in job["static_configs"] for target in one["targets"]
    ]
    settings = StreamSettings()
    ports = {settings.worker.web_port, settings.scores.web_port, settings.sink.web_port}
    assert {int(target.rpartition(":")[2]) for target in targets} == ports


def test_the_configuration_that_reads_an_api_is_one_that_prometheus_takes(tmp_path: Path) -> None:
    (told,) = blocks((REPOSITORY / "docs" / "api.md").read_text(), "yaml")
    token = tmp_path / "api-token"
    token.write_text("token")
    config = tmp_path / "prometheus.yml"
    config.write_text(told.replace("/etc/prometheus/api-token", str(token)))
    assert str(token) in config.read_text()
    checked = promtool("check", "config", config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
