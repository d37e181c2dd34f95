"""Tensors of a safetensors file in memory, taken out one by one, so that they are never there twice as a whole."""

from __future__ import annotations

import json
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.registry import Content

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}


class Tensors:
    """The tensors that are left.

    Raises:
        ValueError: the content is no safetensors file, or has tensors of another type.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : self._begin])
        if not isinstance(header, dict):
            raise ValueError("a header that is none")
        header.pop("__metadata__", None)
        self._entries: dict[str, dict[str, Any]] = header
        unknown = {str(entry["dtype"]) for entry in header.values()} - set(_DTYPES)
        if unknown:
            raise ValueError(f"tensors of {min(unknown)}")

    def names(self) -> list[str]:
        """Of those left."""
        return list(self._entries)

    def shape(self, name: str) -> list[int]:
        """Of one that is left."""
        return list(self._entries[name]["shape"])

    def take(self, name: str) -> NDArray[np.float32]:
        """A copy of the tensor, which is not left afterwards; where content is in pages, they go back to the system."""
        entry = self._entries.pop(name)
        begin, end = (self._begin + offset for offset in entry["data_offsets"])
        taken = np.frombuffer(self._content[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if isinstance(self._content, mmap.mmap):
            first, after = -(-begin // mmap.PAGESIZE), end // mmap.PAGESIZE
            if first < after:
                self._content.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (after - first) * mmap.PAGESIZE)
        return taken.astype(np.float32, copy=False)

    def close(self) -> None:
        """Give everything back; the content cannot be parsed again if it is in pages."""
        self._entries = {}
        if isinstance(self._content, mmap.mmap):
            self._content.close()
