"""Reference banks on disk: margins of models trained without a block of subjects, kept ahead of any request.

A bank is found by its content key (recipe, code, training rows, test rows, statistic, dtype): any difference is a miss,
never a stale hit. One folder a bank:

    <store>/<key digest>/manifest                    SHA-256; key, example ids, subject tags, models wanted
    <store>/<key digest>/<layout>/<seed>.row         one finished model: margins, accuracies, seconds; with its SHA-256
    <store>/locks/<key digest>.lock                  shared by readers and builders, exclusive to whoever drops columns
    <store>/locks/<key digest>.<seed>                held by the builder that trains this seed

Rows are placed whole (`unlearning.files`), so a process killed at any point leaves whole rows only, and several
builders may fill one bank: each claims a seed before it trains it, and of two rows of one seed the first stays. A row
that is cut off, altered or of another bank counts as missing, and is replaced when it is built again.

Dropping a person writes rows without the person's columns into a new layout, moves the manifest over, then overwrites
and unlinks everything else; repeated after a kill it finishes the work. Banks whose models learned from the person, or
were tested on them, keep their numbers and note that one more person is gone: they are *stale* (`audit.staleness`).

The store never sees a user id: examples and subjects are opaque strings, keyed hashes made by the caller.
"""

from __future__ import annotations

import fcntl
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from audit.staleness import Roster, Staleness
from service.banks.bank import Bank, BankStatus, Claim
from service.banks.file_format import BESIDE, BankKey, Manifest, ReferenceRow, decode_row, encode_row
from service.errors import ReferencesError
from unlearning import files

__all__ = ["Bank", "BankKey", "BankStatus", "BankStore", "Claim", "ReferenceRow", "ReferencesError", "Staleness"]


class BankStore:
    """The banks under a folder; any number of processes may use it at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def begin(
        self,
        key: BankKey,
        *,
        example_ids: Sequence[str],
        subject_tags: Sequence[str],
        n_wanted: int,
        now: datetime,
        learned: Mapping[str, str] | None = None,
        tested: Mapping[str, str] | None = None,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Make room for a bank; one that is there already is kept, its `n_wanted` raised if need be.

        Args:
            key: content key.
            example_ids: name of each column, all different.
            subject_tags: whose column it is, `(n_examples,)`; opaque.
            n_wanted: models it is begun for; who looks it up says how many will do.
            now: aware datetime.
            learned, tested: on whose rows the models are trained and tested, see `audit.staleness.Roster.people`;
                a bank begun without them is never found once it is stale.
            before_write: called when whoever drops columns would have to wait; what it raises leaves all as it was.

        Raises:
            ReferencesError: arguments that do not fit, or a bank of this key that lacks an example asked for.
        """
        examples, tags = tuple(example_ids), tuple(subject_tags)
        if not examples or len(set(examples)) != len(examples):
            raise ReferencesError("Expected example_ids to be at least one and all different.")
        if len(tags) != len(examples):
            raise ReferencesError(f"Expected one subject tag an example, got {len(tags)} for {len(examples)}.")
        if n_wanted < 1 or now.tzinfo is None:
            raise ReferencesError(f"Expected n_wanted >= 1 and an aware datetime, got {n_wanted} and {now!r}.")
        with self._lock(key.digest, exclusive=True):
            before_write()
            there = self._manifest(key.digest)
            if there is None:  # none, or one that cannot be read: whose columns the rows hold is unknown then
                self._destroy_bank(key.digest)
                rosters = {"learned": Roster(learned or {}), "tested": Roster(tested or {})}
                self._write_manifest(Manifest.of(key, examples, tags, n_wanted=n_wanted, begun_at=now, **rosters))
            elif lacking := set(examples) - set(there.example_ids):
                raise ReferencesError(
                    f"The bank {key.digest[:12]} has no column for {len(lacking)} of the examples and cannot grow any "
                    "(its models are gone); discard it and build it anew."
                )
            elif n_wanted > there.n_wanted:
                self._write_manifest(replace(there, n_wanted=n_wanted))

    def add(self, key: BankKey, row: ReferenceRow, *, before_write: Callable[[], None] = lambda: None) -> bool:
        """Store a finished model; whether it was kept (False: the seed was there already).

        Columns of people dropped since the model was trained are left out. `before_write` as for `begin`.

        Raises:
            ReferencesError: no such bank, or a row that does not fit it.
        """
        values = np.atleast_2d(np.asarray(row.margins, dtype="<f4"))
        if values.shape != (shape := (key.n_views, len(row.example_ids))):
            raise ReferencesError(f"Expected margins of shape {shape}, views by examples, got {values.shape}.")
        figures = (row.retain_accuracy, row.test_accuracy, row.seconds)
        if np.isnan(values).any() or not all(math.isfinite(figure) for figure in figures) or row.seed < 0:
            raise ReferencesError(f"Expected numbers and a seed >= 0 in the row of seed {row.seed}; did it diverge?")
        with self._lock(key.digest, exclusive=False):
            before_write()
            manifest = self._manifest(key.digest)
            if manifest is None:
                raise ReferencesError(f"Expected the bank {key.digest[:12]} to be begun before rows are added.")
            if row.example_ids != manifest.example_ids:
                position = {example: i for i, example in enumerate(row.example_ids)}
                if not position.keys() >= set(manifest.example_ids):
                    raise ReferencesError(f"The row of seed {row.seed} lacks examples of bank {key.digest[:12]}.")
                values = values[:, [position[example] for example in manifest.example_ids]]
            data = encode_row(replace(row, margins=values), key.digest, manifest.layout)
            path = self._row_path(manifest, row.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            return files.place(path, data, is_whole=lambda there: decode_row(there, manifest) is not None)

    def find(self, key: BankKey, *, n_models: int) -> Bank | None:
        """The bank with all its models if there are `n_models`, however many it was begun for; else none."""
        with self._lock(key.digest, exclusive=False):
            manifest = self._manifest(key.digest)
            rows = sorted(self._rows(manifest), key=lambda row: row.seed) if manifest else []
        if manifest is None or len(rows) < n_models:
            return None
        return Bank(
            key=key,
            views=np.stack([row.margins for row in rows]),
            retain_accuracy=np.array([row.retain_accuracy for row in rows]),
            test_accuracy=np.array([row.test_accuracy for row in rows]),
            seconds=np.array([row.seconds for row in rows]),
            seeds=np.array([row.seed for row in rows], dtype=np.int64),
            example_ids=manifest.example_ids,
            subject_tags=manifest.subject_tags,
        )

    def find_stale(
        self,
        key: BankKey,
        *,
        example_ids: Iterable[str],
        learned: Mapping[str, str],
        tested: Mapping[str, str],
        leaving: Collection[str] = (),
        n_models: int,
        share_max: float,
    ) -> tuple[BankKey, Staleness] | None:
        """The least stale bank that differs from the one of `key` by nothing but people who are gone since.

        Args:
            key: of the bank that would be built now.
            example_ids: columns it must have.
            learned, tested: rosters of the bank that would be built now.
            leaving: tags of people whose erasure waits: in none of the rosters, and gone if a bank learned from them.
            n_models: models it must have, however many it was begun for.
            share_max: largest `Staleness.share` allowed.
        """
        asked, best = set(example_ids), None
        for digest in self._digests():
            manifest = None  # before the next is read: rosters are long
            with self._lock(digest, exclusive=False):
                manifest = self._manifest(digest)
                if manifest is None or not asked <= set(manifest.example_ids):
                    continue
                staleness = _staleness(manifest, key, learned=learned, tested=tested, leaving=leaving)
                if staleness is None or staleness.share > share_max or (best and best[1].share <= staleness.share):
                    continue
                if sum(1 for _ in self._rows(manifest)) >= n_models:
                    best = manifest.key, staleness
        return best

    def made_like(self, key: BankKey, *, n_models: int) -> Iterator[Bank]:
        """Every bank that differs from the one of `key` by nothing but whom its models learned from and were tested on.

        Args:
            n_models: models it must have.
        """
        for digest in self._digests():
            with self._lock(digest, exclusive=False):
                manifest = self._manifest(digest)
            if manifest is None or digest == key.digest or not _is_made_alike(manifest.key, key):
                continue
            if (bank := self.find(manifest.key, n_models=n_models)) is not None:
                yield bank

    def claim(self, key: BankKey, seed: int) -> Claim | None:
        """The right to train a seed; None while another builder has it. A killed builder's claims end with it."""
        path = self.folder / "locks" / f"{key.digest}.{seed}"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return Claim(path, file)

    def holds(self, key: BankKey, seed: int) -> bool:
        """Whether there is a whole row of the seed."""
        with self._lock(key.digest, exclusive=False):
            manifest = self._manifest(key.digest)
            if manifest is None or not (path := self._row_path(manifest, seed)).exists():
                return False
            return decode_row(path.read_bytes(), manifest) is not None

    def missing_seeds(self, key: BankKey, n_models: int, *, first: int = 0) -> tuple[int, ...]:
        """Of `n_models` seeds from `first` on, those for which there is no whole row."""
        with self._lock(key.digest, exclusive=False):
            manifest = self._manifest(key.digest)
            there = {row.seed for row in self._rows(manifest)} if manifest else set()
        return tuple(seed for seed in range(first, first + n_models) if seed not in there)

    def drop_subject(self, subject_tag: str) -> int:
        """`drop_subjects` of one."""
        return self.drop_subjects([subject_tag])

    def drop_subjects(self, subject_tags: Iterable[str]) -> int:
        """Destroy every column of some subjects in every bank, each bank rewritten once; how many there were.

        A bank whose models learned from one of them, or were tested on one, notes that they are gone. A bank left
        without columns goes altogether, and so does one whose manifest cannot be read. Safe to repeat.
        """
        gone = frozenset(subject_tags)
        return sum(self._drop(digest, gone) for digest in self._digests())

    def _drop(self, digest: str, gone: frozenset[str]) -> int:
        """`drop_subjects` in one bank."""
        with self._lock(digest, exclusive=True):
            manifest = self._manifest(digest)
            if manifest is None:
                self._destroy_bank(digest)
                return 0
            keep = [i for i, tag in enumerate(manifest.subject_tags) if tag not in gone]
            n_dropped = len(manifest.subject_tags) - len(keep)
            if not keep:
                self._destroy_bank(digest)
                return n_dropped
            stale = manifest.without(gone)
            if n_dropped:
                manifest = self._narrow(stale, keep)
            elif stale.learned is not manifest.learned or stale.tested is not manifest.tested:
                self._write_manifest(stale)
            self._destroy_remains(manifest)
            return n_dropped

    def count_columns(self, subject_tags: Iterable[str]) -> Counter[tuple[str, str]]:
        """How many columns some subjects have in all banks together, by subject tag and the key's statistic."""
        asked, counts = set(subject_tags), Counter[tuple[str, str]]()
        for digest in self._digests():
            with self._lock(digest, exclusive=False):
                manifest = self._manifest(digest)
            if manifest is not None:
                counts.update((tag, manifest.key.statistic) for tag in manifest.subject_tags if tag in asked)
        return counts

    def discard(self, key: BankKey) -> None:
        """Destroy a bank."""
        with self._lock(key.digest, exclusive=True):
            self._destroy_bank(key.digest)

    def status(self, *, now: datetime) -> tuple[BankStatus, ...]:
        """Every bank, the oldest first, but not what lies beside one (`service.banks.looks`)."""
        found = []
        for digest in self._digests():
            with self._lock(digest, exclusive=False):
                manifest = self._manifest(digest)
                costs = [row.seconds for row in self._rows(manifest)] if manifest else []
                paths = [path for path in (self.folder / digest).rglob("*") if path.is_file()]
                size = sum(path.stat().st_size for path in paths)
            if manifest is None or manifest.key.statistic in BESIDE:
                continue
            found.append(
                BankStatus(
                    key=manifest.key,
                    n_models=len(costs),
                    n_wanted=manifest.n_wanted,
                    n_examples=len(manifest.example_ids),
                    n_subjects=len(set(manifest.subject_tags)),
                    example_ids=manifest.example_ids,
                    subject_tags=frozenset(manifest.subject_tags),
                    size_bytes=size,
                    cost_seconds=sum(costs),
                    age_seconds=(now - manifest.begun_at).total_seconds(),
                    staleness=_counted(manifest),
                )
            )
        return tuple(sorted(found, key=lambda status: -status.age_seconds))

    def any(self) -> bool:
        """Whether there is a bank at all, complete or not."""
        return bool(self._digests())

    def _digests(self) -> list[str]:
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(name for name in names if len(name) == 64)

    def _lock(self, digest: str, *, exclusive: bool) -> AbstractContextManager[None]:
        return files.lock(self.folder / "locks" / f"{digest}.lock", exclusive=exclusive)

    def _manifest(self, digest: str) -> Manifest | None:
        try:
            manifest = Manifest.decode((self.folder / digest / "manifest").read_bytes())
        except OSError:
            return None
        return manifest if manifest and manifest.key.digest == digest else None

    def _layout_folder(self, manifest: Manifest) -> Path:
        return self.folder / manifest.key.digest / manifest.layout.hex()[:16]

    def _row_path(self, manifest: Manifest, seed: int) -> Path:
        return self._layout_folder(manifest) / f"{seed}.row"

    def _rows(self, manifest: Manifest) -> Iterator[ReferenceRow]:
        """Every whole row of the manifest's layout."""
        rows = (decode_row(path.read_bytes(), manifest) for path in self._layout_folder(manifest).glob("*.row"))
        return (row for row in rows if row is not None)

    def _write_manifest(self, manifest: Manifest) -> None:
        folder = self.folder / manifest.key.digest
        folder.mkdir(parents=True, exist_ok=True)
        files.overwrite(folder / "manifest", manifest.encode())

    def _narrow(self, manifest: Manifest, keep: list[int]) -> Manifest:
        """Rows with the kept columns only, in a layout of their own; then the manifest moves over to it."""
        narrow = manifest.keeping(keep)
        self._layout_folder(narrow).mkdir(exist_ok=True)
        for row in self._rows(manifest):
            data = encode_row(replace(row, margins=row.margins[:, keep]), manifest.key.digest, narrow.layout)
            path = self._row_path(narrow, row.seed)
            files.place(path, data, is_whole=lambda there: decode_row(there, narrow) is not None)
        self._write_manifest(narrow)
        return narrow

    def _destroy_remains(self, manifest: Manifest) -> None:
        """Everything in the bank's folder that the manifest does not speak of: earlier layouts, work of the killed."""
        layout, folder = self._layout_folder(manifest), self.folder / manifest.key.digest
        for path in folder.iterdir():
            if path.is_dir() and path != layout:
                files.destroy_folder(path)
        remains = [path for path in folder.iterdir() if path not in (layout, folder / "manifest")]
        if layout.exists():
            remains += [path for path in layout.iterdir() if path.suffix != ".row"]
        files.destroy(*remains, keep_linked=True)  # a temporary file may be a second name of the row beside it

    def _destroy_bank(self, digest: str) -> None:
        """Rows first, manifest last: killed in between, the bank is still known and can be finished off."""
        folder = self.folder / digest
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir():
                files.destroy_folder(path)
        files.destroy_folder(folder)


def _is_made_alike(key: BankKey, other: BankKey) -> bool:
    """Whether two keys differ by nothing but the data that the models saw."""
    return replace(key, training_digest=other.training_digest, test_digest=other.test_digest) == other


def _counted(manifest: Manifest, n_leaving: int = 0) -> Staleness:
    """Staleness as the manifest counts it, and with people who wait to be erased."""
    learned, tested = manifest.learned, manifest.tested
    return Staleness(learned.n_people, learned.n_gone + n_leaving, tested.n_people, tested.n_gone)


def _staleness(
    manifest: Manifest,
    key: BankKey,
    *,
    learned: Mapping[str, str],
    tested: Mapping[str, str],
    leaving: Collection[str],
) -> Staleness | None:
    """How stale a bank is beside the one of `key`; None if they differ by more than people who are gone."""
    if not _is_made_alike(manifest.key, key) or not manifest.learned.n_people:
        return None
    n_learned_gone = manifest.learned.leavers(learned, leaving)
    n_tested_gone = manifest.tested.leavers(tested)
    if n_learned_gone is None or n_tested_gone is None:
        return None
    return _counted(manifest, n_learned_gone - manifest.learned.n_gone)
