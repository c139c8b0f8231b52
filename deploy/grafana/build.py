#!/usr/bin/env python3
"""Builds event-relay.json, the Grafana dashboard.

Change the dashboard here, run this, commit both files; --check tells whether that was forgotten. Rows go from the
question one has at night to the details one needs for the answer; each panel has one sentence on how to read it.
Needs grafana-foundation-sdk.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as words
from grafana_foundation_sdk.models import dashboard as models

TARGET: Final = Path(__file__).with_name("event-relay.json")
RUNBOOK: Final = "https://runbooks.example/event-relay/runbook.md"
SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
RELAYS: Final = 'job=~"$job", instance=~"$instance"'
GREEN, YELLOW, RED = "green", "yellow", "red"

Steps = tuple[tuple[float | None, str], ...]
"""Colours by the value they begin at; the first begins at None."""


class Query(NamedTuple):
    """One expression, and what its lines are called."""

    expr: str
    legend: str = "{{instance}}"


class Stat(NamedTuple):
    """A number of the first row; `alert` names the runbook's entry."""

    title: str
    meaning: str
    expr: str
    unit: str
    steps: Steps
    alert: str
    none: str = "none"


class Graph(NamedTuple):
    """Lines over time; `limit` draws the alert's threshold."""

    title: str
    meaning: str
    queries: tuple[Query, ...]
    unit: str
    stacked: bool = False
    limit: float | None = None
    alert: str = ""


def metric(name: str, **labels: str) -> str:
    """Select a metric of the chosen relays; a label's value holds its operator, as in `state='="active"'`."""
    chosen = ", ".join([RELAYS, *(f"{label}{match}" for label, match in labels.items())])
    return f"event_relay_{name}{{{chosen}}}"


def per_second(name: str, **labels: str) -> str:
    """Rate of a counter over the interval that fits the picture."""
    return f"rate({metric(name, **labels)}[$__rate_interval])"


def quantiles(name: str) -> tuple[Query, ...]:
    """Median and 99th percentile of a histogram over all chosen relays."""
    buckets = f"sum by (le) ({per_second(f'{name}_bucket')})"
    return tuple(Query(f"histogram_quantile({q}, {buckets})", legend) for q, legend in ((0.5, "p50"), (0.99, "p99")))


def mean(name: str) -> Query:
    """Average observation of a histogram over all chosen relays."""
    return Query(f"sum({per_second(f'{name}_sum')}) / sum({per_second(f'{name}_count')})", "mean")


IS_IT_FINE: Final = (
    Stat("Waiting events", "On disk, not delivered yet; those in flight among them.",
         f"sum({metric('queue_events')})", "short", ((None, GREEN),), "EventRelayQueueFillingUp"),
    Stat("Oldest event's age", "Of the events that should be moving. The one number to watch.",
         f"""max({metric('queue_oldest_event_age_seconds', state='="active"')})""",
         "s", ((None, GREEN), (300, YELLOW), (900, RED)), "EventRelayOldestEventTooOld"),
    Stat("Fullest queue", "At 100 % a relay answers 503.",
         f"max({metric('queue_bytes')} / {metric('queue_capacity_bytes')})",
         "percentunit", ((None, GREEN), (0.5, YELLOW), (0.9, RED)), "EventRelayQueueAlmostFull"),
    Stat("Ingest ok", "Share of the requests that could have been accepted and were; the objective is 99.9 %.",
         f"""sum({per_second('ingest_requests_total', code='=~"2.."')})"""
         f""" / sum({per_second('ingest_requests_total', code='=~"2..|5.."')})""",
         "percentunit", ((None, RED), (0.9856, YELLOW), (0.999, GREEN)), "EventRelayIngestErrorBudgetFastBurn",
         none="no traffic"),
    Stat("Dead letters", "Events that upstream will never take as they are; they wait for your decision.",
         f"sum({metric('dead_letter_events')})", "short", ((None, GREEN), (1, YELLOW)), "EventRelayDeadLetters"),
    Stat("Dropped", "Lost by the bound on dead letters, in the time shown; purges are not counted.",
         f"""sum(increase({metric('dropped_events_total', reason='!="purged"')}[$__range]))""",
         "short", ((None, GREEN), (1, RED)), "EventRelayDroppingEvents"),
)  # fmt: skip

QUEUE: Final = (
    Graph("Depth", "Events on disk that are not delivered yet.",
          (Query(metric("queue_events")),), "short", stacked=True, alert="EventRelayQueueFillingUp"),
    Graph("Oldest event", "Rises by a second a second while nothing moves. Parked: waits for a key to work again.",
          (Query(f"max by (state) ({metric('queue_oldest_event_age_seconds')})", "{{state}}"),),
          "s", limit=900, alert="EventRelayOldestEventTooOld"),
    Graph("Fill", "Share of the capacity in use: events, dead letters and the database's own files.",
          (Query(f"{metric('queue_bytes')} / {metric('queue_capacity_bytes')}"),),
          "percentunit", limit=0.9, alert="EventRelayQueueAlmostFull"),
    Graph("In and out", "Where in is over out, the queue grows.",
          (Query(f"sum({per_second('queue_enqueued_events_total')})", "in"),
           Query(f"sum({per_second('queue_acked_events_total')})", "out")), "eps"),
    Graph("Lanes", "Keys with events, by state; a parked one waits for its key to work again.",
          (Query(f"sum by (state) ({metric('queue_lanes')})", "{{state}}"),),
          "short", stacked=True, alert="EventRelayUpstreamAuthFailing"),
    Graph("Time until full", "At the growth of the last two minutes; no line while the queue does not grow.",
          (Query(f"min({metric('queue_seconds_until_full')}) < +Inf", "first one full"),),
          "s", alert="EventRelayQueueFillingUp"),
    Graph("Commit", "Every 202 waits for one; mostly the disk's fsync.",
          quantiles("queue_commit_duration_seconds"), "s", limit=0.25, alert="EventRelaySlowCommits"),
    Graph("Events per commit", "The busier, the more events share an fsync.",
          (mean("queue_commit_events"),), "short"),
    Graph("Disk free", "Of the queue's file system, whoever uses it.",
          (Query(f"{metric('queue_disk_free_bytes')} / {metric('queue_disk_size_bytes')}"),),
          "percentunit", alert="EventRelayDiskAlmostFull"),
    Graph("New dead letters", "By reason; see the runbook for what each wants.",
          (Query(f"sum by (reason) ({per_second('dead_lettered_events_total')})", "{{reason}}"),),
          "eps", stacked=True, alert="EventRelayDeadLetters"),
    Graph("Dead letters gone", "Replayed into the queue, or deleted: by an operator, or by their bound.",
          (Query(f"sum({per_second('dead_letter_replayed_events_total')})", "replayed"),
           Query(f"sum by (reason) ({per_second('dropped_events_total')})", "{{reason}}")),
          "eps", alert="EventRelayDroppingEvents"),
    Graph("Found at the start", "Events and dead letters that this life of the process found on its disk.",
          (Query(f"sum({metric('queue_recovered_events_total')})", "events"),
           Query(f"sum({metric('dead_letter_recovered_events_total')})", "dead letters")), "short"),
)  # fmt: skip

INGEST: Final = (
    Graph("Requests", "By the status they were answered with.",
          (Query(f"sum by (code) ({per_second('ingest_requests_total')})", "{{code}}"),),
          "reqps", stacked=True, alert="EventRelayIngestErrorBudgetFastBurn"),
    Graph("Accepted events", "Answered 202. Suppressed: exact re-sends, accepted and not stored again.",
          (Query(f"sum({per_second('ingest_events_total')})", "accepted"),
           Query(f"sum({per_second('ingest_events_suppressed_total')})", "suppressed")), "eps"),
    Graph("Rejected events", "By reason; after invalid, too_large and unauthorized an SDK drops at once.",
          (Query(f"sum by (reason) ({per_second('ingest_events_rejected_total')})", "{{reason}}"),),
          "eps", stacked=True, alert="EventRelayRejectingEvents"),
    Graph("Answer time", "From a request's last byte to its answer; never more than five seconds.",
          quantiles("ingest_duration_seconds"), "s", limit=5, alert="EventRelaySlowCommits"),
    Graph("Requests in hand", "Come and not answered yet.",
          (Query(metric("ingest_in_flight_requests")),), "short"),
    Graph("Bytes accepted", "Text of the accepted events, as it came.",
          (Query(f"sum({per_second('ingest_bytes_total')})", "accepted"),), "Bps"),
    Graph("Ambiguous answers", "503 while the commit was under way: stored or not, a re-send is recognised.",
          (Query(f"sum({per_second('ingest_ambiguous_requests_total')})", "requests"),), "reqps"),
    Graph("Suspect events", "Forwarded untouched, yet Statsig is documented to drop them in silence.",
          (Query(f"sum by (reason) ({per_second('suspect_events_total')})", "{{reason}}"),), "eps", stacked=True),
)  # fmt: skip

FORWARD: Final = (
    Graph("Attempts", "Requests to upstream, by how they ended.",
          (Query(f"sum by (outcome) ({per_second('forward_requests_total')})", "{{outcome}}"),),
          "reqps", stacked=True, alert="EventRelayNotDraining"),
    Graph("Events attempted", "By how the attempt ended; a repeat counts again.",
          (Query(f"sum by (outcome) ({per_second('forward_events_total')})", "{{outcome}}"),), "eps", stacked=True),
    Graph("Delivery delay", "From accepting an event to upstream's yes, event by event.",
          quantiles("delivery_delay_seconds"), "s", limit=900, alert="EventRelayOldestEventTooOld"),
    Graph("Attempt time", "One request to upstream.", quantiles("forward_duration_seconds"), "s"),
    Graph("Gate", "Requests let through at once; 0 is closed: one probe now and then.",
          (Query(metric("forward_gate_limit")),), "short", alert="EventRelayNotDraining"),
    Graph("Back-off", "Wait between attempts; 0 while upstream answers.",
          (Query(metric("forward_backoff_seconds")),), "s", alert="EventRelayNotDraining"),
    Graph("Events per batch", "Small ones are usual; after an outage they grow to their maximum.",
          (mean("forward_batch_events"), *quantiles("forward_batch_events")), "short"),
    Graph("Bytes sent", "Bodies as they left, compressed.",
          (Query(f"sum({per_second('forward_bytes_total')})", "sent"),), "Bps"),
    Graph("Since the last success", "An idle relay delivers nothing either: read it beside the depth.",
          (Query(f"time() - ({metric('forward_last_success_timestamp_seconds')} > 0)"),), "s"),
    Graph("In flight", "Events in requests to upstream now.", (Query(metric("queue_in_flight_events")),), "short"),
)  # fmt: skip

PROCESS: Final = (
    Graph("Releases", "How many relays run which version.",
          (Query(f"count by (version, python) ({metric('build_info')})", "{{version}}, Python {{python}}"),),
          "short", stacked=True),
    Graph("Age", "A fall is a restart.",
          (Query(f"time() - process_start_time_seconds{{{RELAYS}}}"),), "s", alert="EventRelayRestartLoop"),
    Graph("CPU", "One is a whole core.",
          (Query(f"rate(process_cpu_seconds_total{{{RELAYS}}}[$__rate_interval])"),), "none"),
    Graph("Memory", "Resident; the limit wants 64 MiB plus twice listen.memory_bytes_max.",
          (Query(f"process_resident_memory_bytes{{{RELAYS}}}"),), "bytes"),
    Graph("Event loop lag", "A healthy loop is late by less than 5 ms.",
          quantiles("event_loop_lag_seconds"), "s", alert="EventRelaySlowCommits"),
    Graph("Open files", "Share of the limit; connections are files too.",
          (Query(f"process_open_fds{{{RELAYS}}} / process_max_fds{{{RELAYS}}}"),), "percentunit", limit=0.9),
    Graph("Conservation drift", "Events by which the books are off: 0, or a bug.",
          (Query(metric("conservation_drift_events")),), "short", alert="EventRelayConservationDrift"),
    Graph("Volatile queues", "1 where the queue lies in memory and a reboot loses it.",
          (Query(metric("queue_volatile")),), "short"),
)  # fmt: skip

ROWS: Final[tuple[tuple[str, tuple[Graph, ...]], ...]] = (
    ("Queue", QUEUE),
    ("Ingest", INGEST),
    ("Forward", FORWARD),
    ("Process", PROCESS),
)


def build() -> str:
    """Give the whole dashboard as JSON, the same text for the same code."""
    board = (
        dashboard.Dashboard("Event relay")
        .uid("event-relay")
        .description("Takes Statsig events from local apps, keeps them on disk, forwards them.")
        .tags(["event-relay"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("30s")
        .link(
            dashboard.DashboardLink("Runbook").type(models.DashboardLinkType.LINK).url("${runbook}").target_blank(True)
        )
    )
    for variable in _variables():
        board = board.with_variable(variable)
    ids = iter(range(1, 1000))
    board = board.with_row(dashboard.Row("Is it fine?").id(next(ids)))
    for number in IS_IT_FINE:
        board = board.with_panel(_number(number).id(next(ids)))
    for title, graphs in ROWS:
        board = board.with_row(dashboard.Row(title).id(next(ids)))
        for graph in graphs:
            board = board.with_panel(_lines(graph).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _variables() -> tuple[dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.TextBoxVariable, ...]:
    return (
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _label("job", "Job", "label_values(event_relay_build_info, job)"),
        _label("instance", "Relay", 'label_values(event_relay_build_info{job=~"$job"}, instance)'),
        dashboard.TextBoxVariable("runbook").label("Runbook").default_value(RUNBOOK),
    )


def _label(name: str, label: str, query: str) -> dashboard.QueryVariable:
    everything = models.VariableOption(text="All", value="$__all", selected=True)
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )


def _number(number: Stat) -> stat.Panel:
    return (
        stat.Panel()
        .title(number.title)
        .description(number.meaning)
        .datasource(SOURCE)
        .with_target(_target(Query(number.expr, ""), "A"))
        .unit(number.unit)
        .decimals(2 if number.unit == "percentunit" else 0)
        .no_value(number.none)
        .thresholds(_thresholds(number.steps))
        .color_mode(words.BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(words.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .links([_runbook(number.alert)])
        .span(4)
        .height(5)
    )


def _lines(graph: Graph) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(graph.title)
        .description(graph.meaning)
        .datasource(SOURCE)
        .unit(graph.unit)
        .min(0)
        .fill_opacity(20 if graph.stacked else 8)
        .legend(
            common.VizLegendOptions().display_mode(words.LegendDisplayMode.LIST).placement(words.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(words.TooltipDisplayMode.MULTI).sort(words.SortOrder.DESCENDING))
        .span(8)
        .height(8)
    )
    for ref, query in zip("ABCDEF", graph.queries, strict=False):
        panel = panel.with_target(_target(query, ref))
    if graph.stacked:
        panel = panel.stacking(common.StackingConfig().mode(words.StackingMode.NORMAL).group("A"))
    if graph.limit is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(words.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(((None, GREEN), (graph.limit, RED)))).thresholds_style(dashed)
    if graph.alert:
        panel = panel.links([_runbook(graph.alert)])
    return panel


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().datasource(SOURCE).expr(query.expr).legend_format(query.legend).ref_id(ref).range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    colours = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(colours)


def _runbook(alert: str) -> dashboard.DashboardLink:
    url = f"${{runbook}}#{alert.lower()}"
    return dashboard.DashboardLink(f"Runbook: {alert}").type(models.DashboardLinkType.LINK).url(url).target_blank(True)


def main() -> int:
    """Write the dashboard, or with --check only tell whether the file is what this would write."""
    parser = argparse.ArgumentParser(description="Build the Grafana dashboard.")
    parser.add_argument("--check", action="store_true", help="exit 1 where event-relay.json is not up to date")
    text = build()
    if parser.parse_args().check:
        fresh = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
        if not fresh:
            sys.stderr.write(f"{TARGET.name} is not what build.py makes: run python {Path(__file__).name}\n")
        return 0 if fresh else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
