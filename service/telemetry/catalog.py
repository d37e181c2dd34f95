"""Every metric there is, declared once.

`serving_metrics.py` and `console/metrics.py` take names, kinds, labels and help from here, and so does the table in the
docs. A new metric is an entry here, the line that counts it in one of the two, and the table written anew.

Names have one prefix, base units and `_total` on counters. No label holds an id, a raw path or a name: routes are
templates, and a class stands by its place in the manifest, since a class may be a person.

`python -m service.telemetry.catalog > docs/metrics.md` writes the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

SHORT: Final = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
DECODING: Final = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 2e-2, 0.1, 0.5, 2.0)
SWAPPING: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
LONG: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0, 2592000.0)
IMAGES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
BYTES: Final = (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7)
SHARES: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        kind: as Prometheus has it.
        help: what it counts or says, in a sentence.
        labels: names of its labels.
        buckets: upper bounds of a histogram's buckets, without infinity.
        across: how a gauge of several serving processes becomes one number (`prometheus_client`'s word for it).
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Literal["livemin"] = "livemin"


SERVING: Final[Mapping[str, Measure]] = {
    "expunge_http_requests_total": Measure(
        "counter", "Requests answered, by the route's template.", ("method", "route", "status")
    ),
    "expunge_http_request_duration_seconds": Measure(
        "histogram", "From the request's head to the last byte of the answer.", ("method", "route"), SHORT
    ),
    "expunge_batch_images": Measure("histogram", "Images computed together.", buckets=IMAGES),
    "expunge_decode_seconds": Measure("histogram", "Decoding of one image.", buckets=DECODING),
    "expunge_image_bytes": Measure("histogram", "Size of the image files sent.", buckets=BYTES),
    "expunge_prediction_rejections_total": Measure(
        "counter", "Images not answered, by the error's title.", ("reason",)
    ),
    "expunge_predictions_total": Measure(
        "counter", "Images answered, by the class's place in the manifest.", ("class_index",)
    ),
    "expunge_prediction_confidence": Measure(
        "histogram", "Probability of the class answered, by its place in the manifest.", ("class_index",), SHARES
    ),
    "expunge_serving_generation": Measure(
        "gauge", "Oldest generation a living serving process answers with; -1: none.", across="livemin"
    ),
    "expunge_swap_duration_seconds": Measure(
        "histogram",
        "From the first look at a new generation to the last answer of an older one, in each process; loading at "
        "start included.",
        buckets=SWAPPING,
    ),
}  # fmt: skip
"""On `/metrics` of the serving port, for all serving processes of one start together."""

WORKER: Final[Mapping[str, Measure]] = {
    "expunge_requests": Measure("gauge", "Erasure requests by state.", ("state",)),
    "expunge_requests_overdue": Measure("gauge", "Open requests past their legal deadline."),
    "expunge_next_deadline_timestamp_seconds": Measure(
        "gauge", "Unix time of the nearest deadline of an open request; absent: none is open."
    ),
    "expunge_oldest_open_request_timestamp_seconds": Measure(
        "gauge", "Unix time at which the oldest open request was received; absent: none is open."
    ),
    "expunge_data_obstacle": Measure(
        "gauge",
        "1: nothing true can be said of who is in the data folder, as the worker last looked; 0: it can; absent: it "
        "has not looked yet.",
    ),
    "expunge_erased_people_returned": Measure(
        "gauge",
        "People who were erased and whom the data folder names again, as the worker last looked; absent: not known.",
    ),
    "expunge_requests_set_aside_total": Measure(
        "counter",
        "Requests that wait, or waited, for a human to confirm something of the person: `alike`, an id like a known "
        "one; `unnamed`, images in no row; `fewer`, images of a known person gone.",
        ("reason",),
    ),
    "expunge_request_duration_seconds": Measure(
        "histogram", "From filing to completion, by outcome.", ("outcome",), LONG
    ),
    "expunge_stage_duration_seconds": Measure(
        "histogram", "How long requests stayed in a state, counted when they left it.", ("state",), LONG
    ),
    "expunge_run_started_timestamp_seconds": Measure(
        "gauge", "Unix time at which the open run was claimed; absent: no run is open."
    ),
    "expunge_run_progress_timestamp_seconds": Measure(
        "gauge", "Unix time of the open run's latest progress; absent: no run is open."
    ),
    "expunge_trainings_total": Measure(
        "counter",
        "Trainings that erasure requests caused; one is the median time of the references' trainings.",
        ("purpose",),
    ),
    "expunge_training_time_seconds_total": Measure(
        "counter",
        "Time in which there were trainings beside served predictions, by what they were for (erasures, upkeep, "
        "commands) and by whether they were running or paused for predictions.",
        ("purpose", "what"),
    ),
    "expunge_audits_total": Measure("counter", "Audits by method and verdict.", ("method", "verdict")),
    "expunge_audits_since_passed": Measure("gauge", "Audits since the last one that passed."),
    "expunge_audit_timestamp_seconds": Measure("gauge", "Unix time of a method's latest audit.", ("method",)),
    "expunge_audit_check_value": Measure(
        "gauge", "Figure of a check in a method's latest audit: a ratio or a p-value.", ("method", "check")
    ),
    "expunge_audit_check_bar": Measure("gauge", "The policy's bar for that figure.", ("method", "check")),
    "expunge_qualification_passed": Measure(
        "gauge",
        "Whether the newest qualification of a method of the policy's ladder passed: 1 or 0; absent: there is none.",
        ("method",),
    ),
    "expunge_qualification_expires_timestamp_seconds": Measure(
        "gauge",
        "Unix time at which it expires; absent: it did not pass, or there is none.",
        ("method",),
    ),
    "expunge_shadow_predictions": Measure(
        "gauge",
        "Live predictions that the latest shadowed candidate answered too, by the place of the class answered (-1: "
        "classes with few images, together) and by what of them: all, label_changed, confidence_changed, failed.",
        ("class_index", "what"),
    ),
    "expunge_shadow_timestamp_seconds": Measure(
        "gauge", "Unix time at which its comparison ended; absent: no candidate was shadowed yet."
    ),
    "expunge_bank_blocks": Measure("gauge", "Blocks of people, by the state of their reference bank.", ("state",)),
    "expunge_bank_models": Measure("gauge", "Finished reference models, none counted beyond what is wanted."),
    "expunge_bank_models_wanted": Measure("gauge", "Reference models the policy asks for, over all blocks."),
    "expunge_bank_staleness_ratio": Measure(
        "gauge", "Largest share of the people a bank that may judge learned from who were erased since."
    ),
    "expunge_bank_oldest_timestamp_seconds": Measure(
        "gauge", "Unix time at which the oldest bank was begun; absent: there is none."
    ),
    "expunge_bank_size_bytes": Measure("gauge", "Size of the banks on disk."),
    "expunge_callbacks": Measure("gauge", "Callback deliveries by state.", ("state",)),
    "expunge_oldest_pending_callback_timestamp_seconds": Measure(
        "gauge", "Unix time since which the oldest undelivered callback waits; absent: none waits."
    ),
    "expunge_active_generation": Measure("gauge", "Generation in service; -1: none."),
    "expunge_model_versions": Measure("gauge", "Model versions by state.", ("state",)),
    "expunge_serving_processes": Measure("gauge", "Serving processes with a fresh lease."),
    "expunge_serving_processes_behind": Measure("gauge", "Of these, how many answer with another generation."),
    "expunge_signing_key_rotate_by_timestamp_seconds": Measure(
        "gauge", "Unix time by which the key that signs certificates is to be rotated."
    ),
    "expunge_log_entries": Measure("gauge", "Entries of the append-only log."),
    "expunge_worker_heartbeat_timestamp_seconds": Measure(
        "gauge", "Unix time of the worker's last heartbeat; 0: never."
    ),
    "expunge_worker_waits_since_timestamp_seconds": Measure(
        "gauge",
        "Unix time since which the worker can do nothing but try again, by what fails; absent: it works.",
        ("reason",),
    ),
}  # fmt: skip
"""On `/metrics` of the operators' listener, read from the database at each scrape."""


_OBJECTIVES: Final = (
    "## Objectives",
    "",
    "What the alerts hold the calls of the API to, over 30 days. A process makes the series of each route, with the "
    "status of success, 500 and 503, at its start: a first burst of errors is an increase from 0.",
    "",
    "| routes | without a fault (5xx) | within 250 ms |",
    "|---|---|---|",
    "| `/predictions` | 99.9 % | 99 % |",
    "| `/predictions/batch` | 99.9 %, together with `/predictions` | none: the time goes with the number of images |",
    "| every other route of the API, together | 99.9 % | none: few calls, and whoever makes them waits |",
    "",
    "In no objective are `/health/live` and `/health/ready` (their 503 is an answer, not a fault), `unmatched` (paths "
    "that no route has), `/metrics` and the operators' listener (not counted).",
)


def metrics_page() -> str:
    """`docs/metrics.md`: every metric, its kind, labels and meaning."""
    lines = [
        "# Metrics",
        "",
        "Two listeners in Prometheus' text format. Neither needs a key, and neither says anything about a person.",
    ]
    for title, where, measures in (
        ("Serving", "`/metrics` of the serving port: all serving processes of one start together.", SERVING),
        (
            "Worker",
            "`/metrics` of the operators' port: read from the database at each scrape, so that it survives restarts "
            "and cannot drift.",
            WORKER,
        ),
    ):
        lines += ["", f"## {title}", "", where, "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        for name, measure in measures.items():
            labels = ", ".join(f"`{label}`" for label in measure.labels)
            lines.append(f"| `{name}` | {measure.kind} | {labels} | {measure.help} |")
    lines += ["", *_OBJECTIVES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")  # noqa: T201
