"""Memory of a tree of processes, on Linux.

A proportional set size (PSS) shares a page among all processes that have it, also those of other programs: on a machine
where somebody else uses the same libraries it is too small. So two figures are taken from `/proc/PID/smaps`: the sum of
PSS as the kernel counts it, and what it would be if the tree were alone: what is not of a file, and of each file
the most that one process of the tree has.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.loads.sampling import Sampler

_KIB = 1024
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)\s*(.*)")


@dataclass(frozen=True)
class Pages:
    """Bytes of a tree of processes.

    Attributes:
        pss: proportional set sizes, summed.
        alone: the same if no other program had any of their pages.
        anonymous: of it, what is not of a file.
    """

    pss: int
    alone: int
    anonymous: int


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    root = psutil.Process(pid)
    return [root.pid, *(child.pid for child in root.children(recursive=True))]


def pages(pids: list[int]) -> Pages:
    """Of all these processes together."""
    pss = anonymous = 0
    most: Counter[str] = Counter()  # by file
    for pid in pids:
        of_file: Counter[str] = Counter()
        file = ""
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if mapping := _MAPPING.match(line):
                file = mapping[2] if mapping[1] != "0" else ""
                continue
            name, _, value = line.partition(":")
            if name not in {"Pss", "Rss", "Anonymous"}:
                continue
            n_bytes = int(value.split()[0]) * _KIB
            if name == "Pss":
                pss += n_bytes
            elif name == "Rss" and file:
                of_file[file] += n_bytes
            elif name == "Anonymous":
                anonymous += n_bytes
                of_file[file] -= n_bytes if file else 0  # private copies of a file's pages are no pages of the file
        most |= +of_file
    return Pages(pss, anonymous + sum(most.values()), anonymous)


class Peak(Sampler):
    """The most anonymous memory that processes have together while it runs; looked at fifty times a second."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(every_seconds=0.02)
        self._pids = pids
        self.anonymous = 0

    def look(self) -> None:
        self.anonymous = max(self.anonymous, sum(map(_anonymous, self._pids)))


def _anonymous(pid: int) -> int:
    with suppress(OSError):  # it ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * _KIB
    return 0
