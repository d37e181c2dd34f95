"""A serving process's side of a swap: its row, its lease, and loading the model that the pointer names.

There are two threads. The *heartbeat* renews the lease and then reads the pointer; it has a thread of its own because a
load that takes longer than the lease would otherwise fence the process. The *follower* loads the model that is being
staged, lets the slot change engines when it is committed, and acknowledges when the last older response has been sent.
While an engine is staged it also watches the commit word, so that an idle process swaps within milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event, Thread
from typing import Any

import numpy as np
import structlog
from sqlmodel import select

from service.context import LINE, Context
from service.errors import ExpungeError
from service.inference.engine import Engine
from service.models import deployment, registry, shadowing
from service.models.commit_word import CommitWord
from service.models.deployment import failure_prefix
from service.serving.batching import MicroBatcher
from service.serving.shadow import Shadow
from service.serving.slot import Lease, ModelSlot, Moment
from service.serving.speedups import PACKED_WEIGHTS, is_on
from service.settings import Settings
from service.store.engine import session
from service.store.process_marks import has_ended, mark_of, this_host
from service.store.tables import Deployment, ServingWorker
from unlearning.errors import staying

log = structlog.get_logger()

FIRST_WARM_UP = (1, 2, 4, 8, 16, 32)  # batch sizes computed once before the process is ready
SWAP_WARM_UP = (1, 8)  # beside traffic the library knows the other sizes already; small jobs let batches in between
REMEMBERS = (
    "Expected weights that remember nobody who was erased, but the service was restored from a backup of before an "
    "erasure. Let the worker carry out the erasures that wait; predictions are answered when it has swapped."
)
_WATCH_SECONDS = 0.002
_RETRY_SECONDS = 1.0
_WRITE_SECONDS = 1.0
_FORGOTTEN_AFTER = timedelta(days=1)  # rows of other hosts, whose processes cannot be looked at


class Follower:
    """Keeps a serving process in step with the line's pointer; see the module."""

    def __init__(
        self,
        context: Context,
        slot: ModelSlot,
        lease: Lease,
        word: CommitWord,
        batcher: MicroBatcher,
        *,
        load: Callable[[str, int], Engine] | None = None,
        on_swap: Callable[[int, float], object] = lambda _generation, _seconds: None,
    ) -> None:
        self.boot_id = context.new_id()
        self._context = context
        self._slot = slot
        self._lease = lease
        self._word = word
        self._batcher = batcher
        self._load = load or self._load_from_registry
        self._on_swap = on_swap
        self._acknowledged = -1
        self._seen_at: dict[int, float] = {}  # generation → steady time at which staging it was first tried
        self._last_error = ""
        self._retry_at = 0.0
        self._written_at = 0.0  # steady time at which the shadow's counts were written
        self._compared_at = 0.0  # and at which it last looked at them
        self._stop = Event()
        self._threads = [
            Thread(target=self._beat, name="heartbeat", daemon=True),
            Thread(target=self._follow, name="follower", daemon=True),
        ]

    def start(self) -> None:
        """Register, load what is active, and follow from then on. What cannot be loaded is tried again and again."""
        self.register()
        self._threads[0].start()  # the first load may take longer than a lease
        self._safely(self.step)
        self._threads[1].start()

    def stop(self) -> None:
        """End both threads and take the row away; to be called when nothing is answered any more."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._safely(self._unregister)

    def why_not_ready(self) -> str | None:
        """Why this process should get no requests, in a sentence; none if it should."""
        return self._slot.why_not_ready() or self._last_error or None

    def register(self) -> None:
        """Write the row, before the pointer is read for the first time, and take away rows of those that ended."""
        at = self._lease.now()
        with session(self._context.engine) as s:
            for row in s.exec(select(ServingWorker).where(ServingWorker.line == LINE)):
                if has_ended(row.pid, row.process) or row.lease_until < _wall(at) - _FORGOTTEN_AFTER:
                    s.delete(row)
            s.add(self._row(at))
            s.commit()
        self.renew()

    def renew(self) -> None:
        """One heartbeat: the lease goes on, and from here on nothing older than the pointer is answered.

        The pointer is read after the renewal is durable. Whoever counted this process as fenced did so before that, and
        moved the pointer before; so an answer given under the renewed lease knows of it.
        """
        at = self._lease.now()
        with session(self._context.engine) as s:
            row = s.get(ServingWorker, self.boot_id) or self._row(at)
            row.heartbeat_at, row.lease_until = _wall(at), _wall(at) + timedelta(seconds=self._lease.seconds)
            s.add(row)
            s.commit()
        pointer = deployment.pointer(self._context)
        self._slot.raise_floor(pointer.committed_generation if pointer else 0)
        self._lease.renew(at)

    def step(self) -> None:
        """Read the pointer once and do what it asks for."""
        heard = self._word.read()  # before the pointer: the word is written after it
        pointer = deployment.pointer(self._context) or Deployment(
            line=LINE, committed_generation=0, committed_digest="", updated_at=self._context.now()
        )
        if heard > pointer.committed_generation:
            name = self._context.settings.commit_word_path.name
            self._fail(
                f"Expected generation {heard} in the database, found {pointer.committed_generation}: it was restored "
                f"from an older copy. Stop the service, remove {name} from its home, start it again."
            )
            return
        self._word.advance(pointer.committed_generation)
        self._slot.raise_floor(pointer.committed_generation)
        current, staged = self._slot.current, self._slot.staged
        is_refused = pointer.committed_generation < pointer.oldest_allowed_generation
        if pointer.committed_generation > (current.generation if current else 0) and not is_refused:
            self._stage(pointer.committed_generation, pointer.committed_digest)
        elif pointer.staging_generation is not None and pointer.staging_digest is not None:
            self._stage(pointer.staging_generation, pointer.staging_digest)
        else:
            if staged is not None:
                self._slot.stage(None)
            if is_refused:
                self._fail(REMEMBERS)
                return
            self._recover()
        self.swap_and_acknowledge()
        self._compare()

    def swap_and_acknowledge(self) -> None:
        """Change engines if the staged one is committed; acknowledge if everything older has been sent."""
        staged, current = self._slot.staged, self._slot.current
        if staged is not None and self._slot.committed == staged.generation:
            self._batcher.on_inference_thread(self._slot.swap_if_committed).result()
            current = self._slot.current
        if current is None or current.generation == self._acknowledged:
            return
        if self._slot.has_finished_older_than(current.generation):
            self._write(
                staged_generation=current.generation,
                acknowledged_generation=current.generation,
                acknowledged_at=self._context.now(),
            )
            self._acknowledged = current.generation
            now = self._lease.now().steady
            self._on_swap(current.generation, now - self._seen_at.get(current.generation, now))
            self._seen_at.clear()
            log.info("swap.acknowledged", generation=current.generation, model_version=current.digest)
            _give_memory_back()

    def _stage(self, generation: int, digest: str) -> None:
        staged, now = self._slot.staged, self._lease.now().steady
        if (staged is not None and staged.generation == generation) or now < self._retry_at:
            return
        self._seen_at.setdefault(generation, now)
        try:
            with staying():
                engine = self._load(digest, generation)
            _give_memory_back()  # before the first answers take more
            self._warm_up(engine, SWAP_WARM_UP if self._slot.current else FIRST_WARM_UP)
        except Exception as error:
            self._retry_at = now + _RETRY_SECONDS
            sentence = error.detail if isinstance(error, ExpungeError) else f"{type(error).__name__} while loading."
            self._fail(failure_prefix(generation) + sentence)
            return
        self._slot.stage(engine)
        self._recover()
        self._write(staged_generation=generation)

    def _compare(self) -> None:
        """Let the staged engine answer batches too while a comparison asks for it, and write down what it counted."""
        staged, shadow, now = self._slot.staged, self._batcher.shadow, self._lease.now().steady
        asked = shadowing.find_open(self._context, staged.digest) if staged is not None else None
        if staged is None or asked is None:
            self._batcher.shadow = None
            return
        if shadow is None or shadow.engine is not staged or shadow.run_id != asked.run_id:
            self._batcher.shadow = Shadow(staged, asked.run_id, asked.share, random.Random(self.boot_id))
            self._written_at = self._compared_at = now
        elif now >= self._written_at + _WRITE_SECONDS and (counts := shadow.counts):
            shadowing.write_part(self._context, shadow.run_id, self.boot_id, staged.generation, counts)
            self._written_at = now
        self._seen_at[staged.generation] = self._seen_at.get(staged.generation, now) + now - self._compared_at
        self._compared_at = now  # the swap's own duration goes on afterwards

    def _warm_up(self, engine: Engine, sizes: tuple[int, ...]) -> None:
        for size in sizes:
            warm_up = partial(engine.predict, np.zeros((size, *engine.input_shape), np.uint8))
            self._batcher.on_inference_thread(warm_up).result()

    def _load_from_registry(self, digest: str, generation: int) -> Engine:
        settings = self._context.settings
        weights = registry.load_checked(self._context, digest, in_pages=settings.backend == "openvino")
        return Engine.load(
            weights, generation, settings.device, lambda job: self._batcher.on_inference_thread(job).result(),
            backend=settings.backend, temperature=settings.temperature, pack=_pack_for(settings),
        )  # fmt: skip

    def _fail(self, sentence: str) -> None:
        if sentence != self._last_error:
            log.error("swap.failed", reason=sentence)
            self._last_error = sentence
            self._write(last_error=sentence)

    def _recover(self) -> None:
        if self._last_error:
            self._last_error = ""
            self._write(last_error="")
        self._retry_at = 0.0

    def _row(self, at: Moment) -> ServingWorker:
        expected, pid = self._context.settings.api_workers, os.getpid()
        return ServingWorker(
            boot_id=self.boot_id, line=LINE, host=this_host(), pid=pid, process=mark_of(pid), expected=expected,
            acknowledged_generation=self._acknowledged, last_error=self._last_error, started_at=_wall(at),
            heartbeat_at=_wall(at), lease_until=_wall(at) + timedelta(seconds=self._lease.seconds),
        )  # fmt: skip

    def _unregister(self) -> None:
        with session(self._context.engine) as s:
            row = s.get(ServingWorker, self.boot_id)
            if row is not None:
                s.delete(row)
                s.commit()

    def _write(self, **fields: Any) -> None:
        with session(self._context.engine) as s:
            row = s.get(ServingWorker, self.boot_id)
            if row is None:
                return  # the next heartbeat writes it anew
            for name, value in fields.items():
                setattr(row, name, value)
            s.add(row)
            s.commit()

    def _beat(self) -> None:
        while not self._stop.wait(self._lease.seconds / 4):
            self._safely(self.renew)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._safely(self.step)
            self._safely(self._watch)

    def _watch(self) -> None:
        """Until the next look at the database: rest, or watch the word while a swap is under way."""
        until = self._lease.now().steady + self._context.settings.poll_seconds
        while not self._stop.is_set() and (left := until - self._lease.now().steady) > 0:
            current = self._slot.current
            if self._slot.staged is None and (current is None or current.generation == self._acknowledged):
                self._stop.wait(left)
                return
            self.swap_and_acknowledge()
            self._stop.wait(_WATCH_SECONDS)

    def _safely(self, action: Callable[[], None]) -> None:
        """A thread that keeps the process in step must not end on an error; without heartbeats the lease runs out."""
        try:
            action()
        except Exception as error:
            log.error("swap.disturbed", error=type(error).__name__)
            self._stop.wait(_WATCH_SECONDS)


def _pack_for(settings: Settings) -> Callable[..., Any] | None:
    """How weights are laid out, where PyTorch computes with them."""
    if settings.backend != "torch" or not is_on(PACKED_WEIGHTS, settings):
        return None
    from service.serving.speedups.packed_weights import pack  # imports torch

    return pack


def _give_memory_back() -> None:
    """Let the system have what loading a model and the one before it left: the C library would keep some of it."""
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _wall(at: Moment) -> datetime:
    return datetime.fromtimestamp(at.wall, UTC)
