"""A process pauses itself, all its threads at once, and is woken up by the kernel.

Nobody has to wake it up who might be gone by then: a timer of the process itself sends the signal, again and again
until it is put back, should the first ever come before the pause. Linux drops one that comes in the very moment of the
stop, and the timer with it; therefore whoever asked for the process's work calls `wake_children` now and then.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, Structure, byref, c_int, c_long, c_void_p

import psutil

_MONOTONIC = 1
_AGAIN_SECONDS = 0.02


class _Time(Structure):
    _fields_ = [("seconds", c_long), ("nanoseconds", c_long)]

    @classmethod
    def of(cls, seconds: float) -> _Time:
        whole = int(seconds)
        return cls(whole, int((seconds - whole) * 1e9))


class _Timer(Structure):
    _fields_ = [("interval", _Time), ("value", _Time)]


class _Event(Structure):
    _fields_ = [("value", c_void_p), ("signal", c_int), ("notify", c_int), ("rest", c_int * 12)]


def pauser() -> Callable[[float], None] | None:
    """A function that stops this process for so many seconds; none where the system has no such timers.

    To be called in the main thread. The signal gets a handler, since Linux stops timers whose signal is ignored.
    """
    signal.signal(signal.SIGCONT, lambda *_: None)
    signal.siginterrupt(signal.SIGCONT, False)
    system = ctypes.CDLL(None, use_errno=True)
    if not hasattr(system, "timer_create"):
        return None
    timer = c_void_p()
    event = _Event(None, signal.SIGCONT, 0)  # SIGEV_SIGNAL
    system.timer_create.argtypes = [c_int, POINTER(_Event), POINTER(c_void_p)]
    system.timer_settime.argtypes = [c_void_p, c_int, POINTER(_Timer), POINTER(_Timer)]
    if system.timer_create(_MONOTONIC, byref(event), byref(timer)):
        return None

    def pause(seconds: float) -> None:
        wake = _Timer(_Time.of(_AGAIN_SECONDS), _Time.of(max(seconds, 1e-6)))
        if system.timer_settime(timer, 0, byref(wake), None):
            return
        os.kill(os.getpid(), signal.SIGSTOP)
        system.timer_settime(timer, 0, byref(_Timer()), None)

    return pause


def wake_children() -> None:
    """Let every child of this process go on; nothing happens to one that is not stopped."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            child.resume()
