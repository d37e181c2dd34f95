"""The dashboard, literally: `python deploy/grafana/panels.py > deploy/grafana/dashboards/expunge.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LATENCY = "expunge_http_request_duration_seconds_bucket"
PREDICTIONS = '{job=~"$job", route="/predictions"}'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        description: what it shows and when to worry.
        unit: Grafana's word for it.
        queries: PromQL by legend; `{{label}}` stands for a label's value.
        kind: Grafana's panel type.
        width: of 24 columns.
    """

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    width: int = 8
    decimals: int | None = None


ROWS: Final[Mapping[str, tuple[Panel, ...]]] = {
    "Deadlines": (
        Panel(
            "Past the deadline",
            "Open requests whose legal deadline has passed: anything but 0 is a breach. See DeadlineBreached.",
            "short",
            {"requests": 'sum(expunge_requests_overdue{job=~"$job"})'},
            kind="stat",
            width=4,
        ),
        Panel(
            "Waiting for a human",
            "Open requests that need a human decision; their legal clocks run on.",
            "short",
            {"requests": 'sum(expunge_requests{job=~"$job", state="needs_attention"})'},
            kind="stat",
            width=4,
        ),
        Panel(
            "Time to the next deadline",
            "Time left to the nearest deadline of an open request; no value while none is open.",
            "s",
            {"time left": 'min(expunge_next_deadline_timestamp_seconds{job=~"$job"} - time())'},
            kind="stat",
            width=4,
        ),
        Panel(
            "Open requests",
            "Open requests by state. A state that only grows points to the problem.",
            "short",
            {"{{state}}": 'sum by (state) (expunge_requests{job=~"$job", state!~"completed|cancelled|rejected"})'},
            width=12,
        ),
    ),
    "Pipeline": (
        Panel(
            "Time from filing to completion",
            "Median and 95th percentile over all requests completed so far, by outcome.",
            "s",
            {
                "{{outcome}} p50": "histogram_quantile(0.5, sum by (le, outcome) "
                '(expunge_request_duration_seconds_bucket{job=~"$job"}))',
                "{{outcome}} p95": "histogram_quantile(0.95, sum by (le, outcome) "
                '(expunge_request_duration_seconds_bucket{job=~"$job"}))',
            },
        ),
        Panel(
            "Mean time in each state",
            "Over all requests that have left the state. Unlearning includes building a bank that was not there.",
            "s",
            {
                "{{state}}": 'sum by (state) (expunge_stage_duration_seconds_sum{job=~"$job"}) '
                '/ sum by (state) (expunge_stage_duration_seconds_count{job=~"$job"})'
            },
        ),
        Panel(
            "Since the worker's heartbeat",
            "Seconds since the worker renewed its lease: every 2.5 s while it lives. See WorkerStalled.",
            "s",
            {"heartbeat": 'time() - max(expunge_worker_heartbeat_timestamp_seconds{job=~"$job"})'},
        ),
        Panel(
            "Reference models",
            "Finished models of the banks and those the policy asks for. A request whose block lacks them waits.",
            "short",
            {
                "finished": 'sum(expunge_bank_models{job=~"$job"})',
                "wanted": 'sum(expunge_bank_models_wanted{job=~"$job"})',
            },
        ),
        Panel(
            "Trainings beside predictions",
            "Share of time in which trainings ran or were paused, by what they are for; none of both: nothing is "
            "trained. Much paused for long: predictions leave little, and erasures take longer. See DeadlineNear.",
            "percentunit",
            {
                "{{purpose}} {{what}}": "sum by (purpose, what) "
                '(rate(expunge_training_time_seconds_total{job=~"$job"}[$__rate_interval]))'
            },
        ),
        Panel(
            "Blocks by their bank",
            "Fresh and stale banks can be used; requests wait for outdated and missing ones. See BankStale.",
            "short",
            {"{{state}}": 'sum by (state) (expunge_bank_blocks{job=~"$job"})'},
        ),
        Panel(
            "Callbacks",
            "Deliveries by state. Pending ones are tried again for days; given up ones were not delivered.",
            "short",
            {"{{state}}": 'sum by (state) (expunge_callbacks{job=~"$job"})'},
        ),
    ),
    "Forgetting quality": (
        Panel(
            "Forgetting ratio",
            "F over F between two halves of the retrained models, in each method's latest audit, and the threshold.",
            "percentunit",
            {
                "{{method}}": 'max by (method) (expunge_audit_check_value{job=~"$job", check="forgetting_ratio"})',
                "bar": 'max(expunge_audit_check_bar{job=~"$job", check="forgetting_ratio"})',
            },
        ),
        Panel(
            "Gate",
            "p-value of the candidate among models trained without the person, over all views of the images, in each "
            "method's latest audit; a small one means that the gate can distinguish it.",
            "none",
            {
                "{{method}}": 'max by (method) (expunge_audit_check_value{job=~"$job", check="gate"})',
                "bar": 'max(expunge_audit_check_bar{job=~"$job", check="gate"})',
            },
            decimals=2,
        ),
        Panel(
            "Qualification",
            "Time until the qualification of a method of the ladder ends; none where the newest one failed. See "
            "QualificationExpiring and QualificationFailed.",
            "s",
            {"{{method}}": 'max by (method) (expunge_qualification_expires_timestamp_seconds{job=~"$job"}) - time()'},
        ),
        Panel(
            "Trainings",
            "What erasures caused in the last day, in trainings, by purpose: candidates, runs of methods, references "
            "and oracles that were not there.",
            "none",
            {"{{purpose}}": 'sum by (purpose) (increase(expunge_trainings_total{job=~"$job"}[1d]))'},
            decimals=1,
        ),
        Panel(
            "Utility",
            "Accuracy of the candidate as a share of retrained models', on the retain set and on held-out subjects.",
            "percentunit",
            {
                "{{method}} {{check}}": "max by (method, check) "
                '(expunge_audit_check_value{job=~"$job", check=~"deployed_(retain|test)_ratio"})'
            },
        ),
        Panel(
            "Audits",
            "All audits by verdict. A candidate that failed is not deployed; the next method of the ladder is tried.",
            "short",
            {"{{method}} {{verdict}}": 'sum by (method, verdict) (expunge_audits_total{job=~"$job"}) > 0'},
        ),
        Panel(
            "Audits since one passed",
            "Audits in a row that did not pass. See AuditFailing.",
            "short",
            {"audits": 'max(expunge_audits_since_passed{job=~"$job"})'},
        ),
        Panel(
            "Cost of unlearning",
            "Time of a method as a share of retraining's, latest audit of each; empty for exact retraining.",
            "percentunit",
            {"{{method}}": 'max by (method) (expunge_audit_check_value{job=~"$job", check="cost_share"})'},
        ),
    ),
    "Serving": (
        Panel(
            "Predictions answered",
            "Answers a second to POST /predictions, by status.",
            "reqps",
            {"{{status}}": f"sum by (status) (rate(expunge_http_requests_total{PREDICTIONS}[$__rate_interval]))"},
        ),
        Panel(
            "Latency of predictions",
            "From the request's head to the last byte of the answer. The objective is 99 % within 250 ms.",
            "s",
            {
                f"p{name}": f"histogram_quantile({share}, sum by (le) (rate({LATENCY}{PREDICTIONS}[$__rate_interval])))"
                for name, share in (("50", 0.5), ("95", 0.95), ("99", 0.99))
            },
        ),
        Panel(
            "Faults of predictions",
            "Share of predictions answered with 5xx. The objective is one in a thousand over 30 days.",
            "percentunit",
            {
                "5xx": f'(sum(rate(expunge_http_requests_total{{job=~"$job", route="/predictions", status=~"5.."}}'
                f"[$__rate_interval])) or vector(0)) "
                f"/ sum(rate(expunge_http_requests_total{PREDICTIONS}[$__rate_interval]))"
            },
        ),
        Panel(
            "Images computed together",
            "Mean size of a batch. It grows with the load; near 64 a process is at its limit.",
            "short",
            {
                "mean": 'sum(rate(expunge_batch_images_sum{job=~"$job"}[$__rate_interval])) '
                '/ sum(rate(expunge_batch_images_count{job=~"$job"}[$__rate_interval]))'
            },
            decimals=1,
        ),
        Panel(
            "Generation",
            "The committed model version, and the oldest one each replica answers with. See GenerationsDiffer.",
            "short",
            {
                "committed": 'max(expunge_active_generation{job=~"$job"})',
                "{{instance}}": 'min by (instance) (expunge_serving_generation{job=~"$job"})',
            },
        ),
        Panel(
            "Duration of swaps",
            "Mean time from a process's first look at a new generation to its last answer of an older one.",
            "s",
            {
                "mean": 'sum(expunge_swap_duration_seconds_sum{job=~"$job"}) '
                '/ sum(expunge_swap_duration_seconds_count{job=~"$job"})'
            },
        ),
    ),
    "Inputs and outputs": (
        Panel(
            "Classes answered",
            "Share of each class among the answers, by its place in the manifest. A sudden shift means other inputs.",
            "percentunit",
            {
                "class {{class_index}}": "sum by (class_index) "
                '(rate(expunge_predictions_total{job=~"$job"}[$__rate_interval])) '
                '/ on () group_left () sum(rate(expunge_predictions_total{job=~"$job"}[$__rate_interval]))'
            },
        ),
        Panel(
            "Confidence",
            "Mean probability of the class answered. A fall means inputs unlike those the model learned from.",
            "percentunit",
            {
                "class {{class_index}}": "sum by (class_index) "
                '(rate(expunge_prediction_confidence_sum{job=~"$job"}[$__rate_interval])) '
                "/ sum by (class_index) "
                '(rate(expunge_prediction_confidence_count{job=~"$job"}[$__rate_interval]))'
            },
        ),
        Panel(
            "Images refused",
            "Images a second that were not answered, by the reason the caller was told.",
            "reqps",
            {
                "{{reason}}": "sum by (reason) "
                '(rate(expunge_prediction_rejections_total{job=~"$job"}[$__rate_interval]))'
            },
        ),
        Panel(
            "Size of image files",
            "Median and 95th percentile of the files sent.",
            "bytes",
            {
                f"p{name}": f"histogram_quantile({share}, sum by (le) "
                '(rate(expunge_image_bytes_bucket{job=~"$job"}[$__rate_interval])))'
                for name, share in (("50", 0.5), ("95", 0.95))
            },
        ),
        Panel(
            "Decoding of an image",
            "Median and 95th percentile of the time from file to pixels.",
            "s",
            {
                f"p{name}": f"histogram_quantile({share}, sum by (le) "
                '(rate(expunge_decode_seconds_bucket{job=~"$job"}[$__rate_interval])))'
                for name, share in (("50", 0.5), ("95", 0.95))
            },
        ),
        Panel(
            "Labels that the latest candidate would change",
            "Share of live predictions that the candidate shadowed last gave another label, by the class answered; "
            "-1: classes with few images, together.",
            "percentunit",
            {
                "class {{class_index}}": "sum by (class_index) "
                '(expunge_shadow_predictions{job=~"$job", what="label_changed"}) '
                '/ sum by (class_index) (expunge_shadow_predictions{job=~"$job", what="all"})'
            },
        ),
    ),
}

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HEIGHT = 7


def dashboard() -> dict[str, Any]:
    """Grafana's JSON of the dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        panels.append(
            {
                "type": "row", "id": len(panels) + 1, "title": row, "collapsed": False, "panels": [],
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
            }
        )  # fmt: skip
        x, y = 0, y + 1
        for panel in members:
            if x + panel.width > 24:
                x, y = 0, y + _HEIGHT
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += _HEIGHT
    return {
        "uid": "expunge",
        "title": "Expunge",
        "description": "Erasure requests by deadline, the pipeline, how well models forget, and serving.",
        "tags": ["expunge"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0 if panel.kind == "timeseries" else None}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "stat":
        defaults["noValue"] = "none open"
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": (
            {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
            if panel.kind == "timeseries"
            else {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
        ),
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "job", "label": "Job", "type": "query", "datasource": _SOURCE, "refresh": 2, "includeAll": True,
            "multi": True, "allValue": "expunge.*", "current": {"text": "All", "value": "$__all"},
            "query": 'label_values(up{job=~"expunge.*"}, job)',
        },
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
