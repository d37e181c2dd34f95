"""Metrics of the serving processes, one exposition for all of them.

Labels are route templates, states and numbers of classes: no id, no path, no name, since a class may be a person. Each
process keeps its values in files of `PROMETHEUS_MULTIPROC_DIR`, which must be set before this module is imported;
without it the values are this process's alone. A process that takes the place of a killed one takes over its files.

Counting what belongs to one prediction takes 12 µs of processor time, about 1 % of a ResNet-18's prediction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.errors import (
    ExpungeError,
    InvalidInputError,
    NotAllowedError,
    NotAuthenticatedError,
    TooLargeError,
    TooManyAtOnceError,
    TryLaterError,
    UnsupportedImageError,
)
from service.telemetry.catalog import SERVING
from unlearning.files import lock

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_RESERVED_BYTES = 1 << 19  # of each file: some thousand series
_ADDED_UP = ("counter", "histogram")  # kinds of which one process's count may go on another's


def forget_ended_processes() -> None:
    """What only living processes have is no longer reported of those that had no time to say that they end.

    Counts stay: they happened.
    """
    directory = os.environ.get(_DIRECTORY)
    if directory is not None:
        with _alone(directory):
            for _, pid in _left_by_ended(directory, "gauge_live*"):
                mark_process_dead(pid)


def _open_files(directory: str) -> None:
    """Files for this process's values: those that an ended process left, else new ones.

    Each file goes on counting where its process was killed, so there are never more than processes ran at once. They
    are `prometheus_client`'s own, which opens a file of its process's number if there is one, and reads what it has.
    """
    with _alone(directory):
        for kind in {f"gauge_{each.across}" if each.kind == "gauge" else each.kind for each in SERVING.values()}:
            path = Path(directory) / f"{kind}_{os.getpid()}.db"
            if path.exists():
                continue  # an ended process had our number
            left = [file for file, _ in _left_by_ended(directory, kind)] if kind in _ADDED_UP else []
            if left:
                left[0].rename(path)
            else:
                _reserve(path)


def _reserve(path: Path) -> None:
    """Make a file that has taken its room from the disk.

    Values are written through a mapping, and a mapped page for which a full disk has no room ends the process. A file
    has its name only once it has its room: an empty one would end every scrape of every process.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVED_BYTES)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _alone(directory: str) -> AbstractContextManager[None]:
    """No other process renames or removes files, and none reads them: a scrape would miss a renamed one."""
    return lock(Path(directory) / "files.lock", exclusive=True)


def _left_by_ended(directory: str, kind: str) -> Iterator[tuple[Path, int]]:
    """Files of a kind whose processes run no more, and the numbers of these."""
    for path in sorted(Path(directory).glob(f"{kind}_*.db")):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not _runs(int(pid)):
            yield path, int(pid)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if _DIRECTORY in os.environ:
    _open_files(os.environ[_DIRECTORY])


def _counter(name: str) -> Counter:
    return Counter(name, SERVING[name].help, SERVING[name].labels)


def _gauge(name: str) -> Gauge:
    return Gauge(name, SERVING[name].help, SERVING[name].labels, multiprocess_mode=SERVING[name].across)


def _histogram(name: str) -> Histogram:
    return Histogram(name, SERVING[name].help, SERVING[name].labels, buckets=SERVING[name].buckets)


REQUESTS = _counter("expunge_http_requests_total")
LATENCY = _histogram("expunge_http_request_duration_seconds")
BATCH_SIZE = _histogram("expunge_batch_images")
DECODE = _histogram("expunge_decode_seconds")
IMAGE_BYTES = _histogram("expunge_image_bytes")
REJECTIONS = _counter("expunge_prediction_rejections_total")
PREDICTIONS = _counter("expunge_predictions_total")
CONFIDENCE = _histogram("expunge_prediction_confidence")
GENERATION = _gauge("expunge_serving_generation")
SWAP = _histogram("expunge_swap_duration_seconds")

DISCONNECTED = "Disconnected"
_REASONS = (
    DISCONNECTED,
    *(
        error.title
        for error in (
            ExpungeError, InvalidInputError, NotAllowedError, NotAuthenticatedError, TooLargeError, TooManyAtOnceError,
            TryLaterError, UnsupportedImageError,
        )
    ),
)  # fmt: skip
_FAULTS = (500, 503)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Watch:
    """Counts and times what a serving process does."""

    def image(self, n_bytes: int, decode_seconds: float) -> None:
        """An image was decoded."""
        IMAGE_BYTES.observe(n_bytes)
        DECODE.observe(decode_seconds)

    def batch(self, n_images: int) -> None:
        """A batch of so many images is computed."""
        BATCH_SIZE.observe(n_images)

    def prediction(self, class_index: int, confidence: float) -> None:
        """An image was answered."""
        PREDICTIONS.labels(str(class_index)).inc()
        CONFIDENCE.labels(str(class_index)).observe(confidence)

    def rejection(self, reason: str) -> None:
        """An image was not answered."""
        REJECTIONS.labels(reason).inc()

    def answer(self, method: str, route: str, status: int, seconds: float) -> None:
        """A call was answered, under its route's template."""
        known = method if method in _METHODS else "other"
        REQUESTS.labels(known, route, str(status)).inc()
        LATENCY.labels(known, route).observe(seconds)

    def refusals(self, route: str, reason: str, n: int) -> None:
        """So many posts were refused unread."""
        for _ in range(n):
            self.answer("POST", route, 503, 0.0)
            self.rejection(reason)

    def swap(self, generation: int, seconds: float) -> None:
        """A generation is in service, and nothing older leaves any more."""
        GENERATION.set(generation)
        SWAP.observe(seconds)

    def start(self, routes: Iterable[tuple[str, str, int]] = ()) -> None:
        """The process starts, without a model yet.

        Prometheus sees no increase in a series that begins above zero, so whatever labels are known get their zero now:
        otherwise the first burst of errors would be in no rate.

        Args:
            routes: method, template and status of success of each.
        """
        forget_ended_processes()
        for method, route, success in routes:
            LATENCY.labels(method, route)
            for status in (success, *_FAULTS):
                REQUESTS.labels(method, route, str(status))
        for reason in _REASONS:
            REJECTIONS.labels(reason)
        GENERATION.set(-1)

    def stop(self) -> None:
        """The process ends."""
        forget_this_process()


class Unwatched(Watch):
    """Counts nothing, for `EXPUNGE_METRICS=false`."""

    def image(self, n_bytes: int, decode_seconds: float) -> None: ...
    def batch(self, n_images: int) -> None: ...
    def prediction(self, class_index: int, confidence: float) -> None: ...
    def rejection(self, reason: str) -> None: ...
    def answer(self, method: str, route: str, status: int, seconds: float) -> None: ...
    def refusals(self, route: str, reason: str, n: int) -> None: ...
    def swap(self, generation: int, seconds: float) -> None: ...
    def start(self, routes: Iterable[tuple[str, str, int]] = ()) -> None: ...
    def stop(self) -> None: ...


def exposition() -> tuple[bytes, str]:
    """Metrics of all serving processes in Prometheus' text format, and its content type."""
    registry: CollectorRegistry = REGISTRY
    if _DIRECTORY in os.environ:
        forget_ended_processes()  # those that were killed since the last look
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        with _alone(os.environ[_DIRECTORY]):
            return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def forget_this_process() -> None:
    """On shutdown: what only living processes have is no longer reported for this one."""
    if _DIRECTORY in os.environ:
        with _alone(os.environ[_DIRECTORY]):
            mark_process_dead(os.getpid())
