"""Rules, their unit tests and the examples beside them: valid, complete, and about metrics that exist."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Life

    Tool = Callable[..., subprocess.CompletedProcess[str]]

PROMETHEUS = "Debian package prometheus"
ALERTMANAGER = "Debian package prometheus-alertmanager"

CRITICAL = {
    "Down", "IngestErrorBudgetFastBurn", "NotDraining", "QueueAlmostFull", "DiskAlmostFull", "UpstreamAuthFailing",
    "DroppingEvents", "RejectingEvents",
}  # fmt: skip
WARNING = {
    "IngestErrorBudgetSlowBurn", "OldestEventTooOld", "QueueFillingUp", "DeadLetters", "LanePaused",
    "SlowCommits", "ConservationDrift", "RestartLoop",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(deploy: Path) -> Path:
    return deploy / "prometheus"


@pytest.fixture(scope="module")
def rules(folder: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((folder / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def alerts(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for rule in rules if "alert" in rule]


def test_promtool_finds_no_fault_in_the_rules(tool: Tool, folder: Path) -> None:
    done = tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", folder / "rules.yml", needs=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault_in_the_metrics_page(life: Life) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip(f"promtool is not installed ({PROMETHEUS})")
    life.turn()
    done = subprocess.run([promtool, "check", "metrics"], input=life.page(), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_alert_fires_and_stays_silent_as_its_unit_tests_say(tool: Tool, folder: Path) -> None:
    done = tool("promtool", "test", "rules", folder / "rules_test.yml", needs=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_for_firing_and_one_for_silence(folder: Path, alerts: list[dict[str, Any]]) -> None:
    tests = yaml.safe_load((folder / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    # Silence counts only where a whole test expects nothing: a test that fires later proves another thing.
    silent = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if not any(other.get("exp_alerts") for other in test["alert_rule_test"])
    }
    names = {alert["alert"] for alert in alerts}
    assert firing == names
    # A relay that flaps or belongs to another job is silent beside one that is down, in one test.
    assert silent == names - {"EventRelayDown"}


def test_every_alert_that_operations_wants_exists_with_its_severity(alerts: list[dict[str, Any]]) -> None:
    by_severity: dict[str, set[str]] = {"critical": set(), "warning": set()}
    for alert in alerts:
        by_severity[alert["labels"]["severity"]].add(alert["alert"].removeprefix("EventRelay"))
    assert by_severity == {"critical": CRITICAL, "warning": WARNING}


def test_every_alert_says_what_is_wrong_and_leads_to_its_entry_in_the_runbook(
    alerts: list[dict[str, Any]], runbook_anchors: frozenset[str]
) -> None:
    for alert in alerts:
        notes = alert["annotations"]
        assert notes["summary"]
        assert notes["description"].endswith(".")
        page, _, anchor = notes["runbook_url"].partition("#")
        assert page == "https://runbooks.example/event-relay/runbook.md"
        assert anchor == alert["alert"].lower()
        assert anchor in runbook_anchors


def test_rules_ask_only_for_metrics_labels_and_values_that_a_relay_exposes(
    rules: list[dict[str, Any]], unknown_in: Callable[[str], list[str]]
) -> None:
    problems = [problem for rule in rules for problem in unknown_in(rule["expr"])]
    assert problems == []


def test_the_check_for_unknown_metrics_sees_a_wrong_name_a_wrong_label_and_a_wrong_value(
    unknown_in: Callable[[str], list[str]],
) -> None:
    assert unknown_in("event_relay_queue_depth > 1") == ["no metric event_relay_queue_depth"]
    assert unknown_in('event_relay_queue_events{lane="a"}') == ["event_relay_queue_events has no label lane"]
    assert unknown_in('event_relay_queue_lanes{state="stuck"}') == ['event_relay_queue_lanes never has state="stuck"']


def test_every_recorded_series_is_used_by_an_alert(rules: list[dict[str, Any]], alerts: list[dict[str, Any]]) -> None:
    asked = " ".join(alert["expr"] for alert in alerts)
    assert [rule["record"] for rule in rules if "record" in rule and rule["record"] not in asked] == []


def test_promtool_accepts_the_scrape_examples(tool: Tool, folder: Path, tmp_path: Path) -> None:
    done = tool("promtool", "check", "config", folder / "prometheus.yml", needs=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr
    # Debian builds Prometheus without Kubernetes discovery: another one stands in, the relabelling is what is checked.
    jobs = yaml.safe_load((folder / "kubernetes-scrape.yml").read_text(encoding="utf-8"))
    for job in jobs["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["static_configs"] = [{"targets": ["pod:9464"]}]
    stand_in = tmp_path / "prometheus.yml"
    stand_in.write_text(yaml.safe_dump(jobs), encoding="utf-8")
    done = tool("promtool", "check", "config", stand_in, needs=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scraped_pods_get_the_job_that_the_rules_look_for_and_are_found_by_the_admin_port(folder: Path) -> None:
    (job,) = yaml.safe_load((folder / "kubernetes-scrape.yml").read_text(encoding="utf-8"))["scrape_configs"]
    steps = job["relabel_configs"]
    assert {"target_label": "job", "replacement": "event-relay"} in steps
    assert any(step.get("regex") == "relay-admin" and step.get("action") == "keep" for step in steps)


def test_amtool_accepts_the_alertmanager_example(tool: Tool, folder: Path) -> None:
    done = tool("amtool", "check-config", folder / "alertmanager.yml", needs=ALERTMANAGER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "pager"), ("warning", "ticket")])
def test_critical_alerts_page_and_warnings_do_not(tool: Tool, folder: Path, severity: str, receiver: str) -> None:
    config = f"--config.file={folder / 'alertmanager.yml'}"
    labels = ("alertname=EventRelayDown", f"severity={severity}")
    done = tool("amtool", "config", "routes", "test", config, *labels, needs=ALERTMANAGER)
    assert done.stdout.strip() == receiver


def test_alertmanager_silences_only_alerts_that_exist(folder: Path, alerts: list[dict[str, Any]]) -> None:
    config = yaml.safe_load((folder / "alertmanager.yml").read_text(encoding="utf-8"))
    names = {alert["alert"] for alert in alerts}
    matchers = [
        matcher for rule in config["inhibit_rules"] for matcher in rule["source_matchers"] + rule["target_matchers"]
    ]
    exact = {matcher.split('"')[1] for matcher in matchers if "=~" not in matcher}
    assert exact <= names
