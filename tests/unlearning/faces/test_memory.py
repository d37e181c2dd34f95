"""Freed memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import ctypes

from unlearning.faces.memory import give_back_memory


def test_a_library_without_the_call_is_no_error(monkeypatch):
    give_back_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back_memory()
