"""The dashboard: what build.py makes, about metrics that exist, with nothing that a relay measures left out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Samples

IS_IT_FINE = ["Waiting events", "Oldest event's age", "Fullest queue", "Ingest ok", "Dead letters", "Dropped"]


@pytest.fixture(scope="module")
def dashboard(deploy: Path) -> dict[str, Any]:
    board: dict[str, Any] = json.loads((deploy / "grafana" / "event-relay.json").read_text(encoding="utf-8"))
    return board


@pytest.fixture(scope="module")
def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_is_what_its_program_makes(deploy: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="PyPI package grafana-foundation-sdk is not installed")
    program = deploy / "grafana" / "build.py"
    done = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_rows_go_from_the_question_to_the_details(dashboard: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in dashboard["panels"]]
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Is it fine?", "Queue", "Ingest", "Forward", "Process"]
    assert titles[1 : titles.index("Queue")] == IS_IT_FINE


def test_panels_ask_only_for_metrics_labels_and_values_that_a_relay_exposes(
    expressions: list[str], unknown_in: Callable[[str], list[str]]
) -> None:
    assert [problem for expr in expressions for problem in unknown_in(expr)] == []


def test_every_metric_of_the_relay_is_shown_somewhere(expressions: list[str], samples: Samples) -> None:
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for expr in expressions
        for name in re.findall(r"\bevent_relay_\w+", expr)
    }
    assert sorted(samples.families - shown) == []


def test_every_selector_obeys_the_chosen_job_and_relay(expressions: list[str]) -> None:
    for expr in expressions:
        for selector in re.findall(r"\b(?:event_relay|process)_\w+(\{[^}]*\})?", expr):
            assert 'job=~"$job", instance=~"$instance"' in selector, expr


def test_every_panel_has_a_title_of_its_own_a_unit_and_a_sentence_on_how_to_read_it(
    panels: list[dict[str, Any]],
) -> None:
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_every_number_of_the_first_row_is_coloured_and_leads_to_the_runbook(panels: list[dict[str, Any]]) -> None:
    for panel in panels[: len(IS_IT_FINE)]:
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        assert panel["links"], panel["title"]


def test_every_link_leads_to_an_entry_of_the_runbook(
    panels: list[dict[str, Any]], runbook_anchors: frozenset[str]
) -> None:
    links = [link["url"] for panel in panels for link in panel.get("links", [])]
    assert links
    for url in links:
        page, _, anchor = url.partition("#")
        assert page == "${runbook}"
        assert anchor in runbook_anchors


def test_panels_overlap_nowhere_and_stay_on_the_grid(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_lines_in_a_panel_that_share_a_threshold_with_an_alert_use_its_number(
    panels: list[dict[str, Any]], deploy: Path
) -> None:
    rules = yaml.safe_load((deploy / "prometheus" / "rules.yml").read_text(encoding="utf-8"))["groups"]
    exprs = {rule["alert"]: rule["expr"] for group in rules for rule in group["rules"] if "alert" in rule}
    limits = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for panel in panels
        if panel["type"] == "timeseries" and "thresholds" in panel["fieldConfig"]["defaults"]
    }
    for title, alert in (
        ("Oldest event", "EventRelayOldestEventTooOld"),
        ("Fill", "EventRelayQueueAlmostFull"),
        ("Commit", "EventRelaySlowCommits"),
    ):
        assert f"> {limits[title]:g}" in exprs[alert]
