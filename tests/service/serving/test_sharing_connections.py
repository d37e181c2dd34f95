"""Connections shared among processes at one socket: who holds more comes later. With a loop that only remembers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from service.serving.connections import share_connections


class Protocol(asyncio.Protocol):
    """A connection."""


class Socket:
    number = 7

    def fileno(self) -> int:
        return self.number


class Loop:
    """What asyncio's loop has for listening; connections come when told."""

    def __init__(self) -> None:
        self.reading: dict[int, tuple[Any, ...]] = {}
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.taken: list[int] = []  # most connections to be taken, each time
        self.protocols: list[Protocol] = []

    def _accept_connection(self, make: Callable[[], Protocol], sock: Socket, ssl: Any, server: Any, n: int) -> None:
        self.taken.append(n)
        self.protocols.append(make())

    def _add_reader(self, number: int, callback: Callable[..., None], *arguments: Any) -> None:
        self.reading[number] = (callback, *arguments)

    def _remove_reader(self, number: int) -> None:
        del self.reading[number]

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback))

    def listen(self, sock: Socket) -> None:
        self._add_reader(sock.fileno(), self._accept_connection, Protocol, sock, None, None, 100)

    def wake(self) -> float | None:
        """A connection waits: gives how long it was left to others, none if it was taken at once."""
        callback, *arguments = self.reading[Socket.number]
        n_before = len(self.later)
        callback(*arguments)
        yields = [each for each in self.later[n_before:] if each[0] < 1]
        if not yields:
            return None
        seconds, come_back = yields[0]
        come_back()
        return seconds


@pytest.fixture
def loop() -> Loop:
    loop = Loop()
    share_connections(loop)
    loop.listen(Socket())
    return loop


def test_the_first_connection_is_taken_at_once(loop: Loop) -> None:
    assert loop.wake() is None
    assert loop.taken == [1]


def test_who_holds_more_comes_later_up_to_some_milliseconds(loop: Loop) -> None:
    waits = [loop.wake() for _ in range(40)]
    assert waits[1:17] == sorted(set(waits[1:17]))
    assert set(waits[16:]) == {waits[16]}
    assert waits[16] < 0.01


def test_with_many_connections_several_are_taken_together(loop: Loop) -> None:
    for _ in range(100):
        loop.wake()
    assert loop.taken[:16] == [1] * 16
    assert loop.taken[-1] == 12


def test_ended_connections_do_not_count(loop: Loop) -> None:
    for _ in range(5):
        loop.wake()
    for protocol in loop.protocols[:3]:
        protocol.connection_lost(None)
    two_held = loop.wake()
    loop.protocols.clear()  # lost without a word
    loop.later.clear()
    gc.collect()
    assert two_held is not None
    assert loop.wake() is None


def test_a_closed_socket_is_left_alone(loop: Loop) -> None:
    loop.wake()
    callback, *arguments = loop.reading[7]
    callback(*arguments)
    arguments[1].number = -1
    loop.later[-1][1]()
    assert loop.reading == {}
    assert loop.taken == [1]


def test_other_loops_are_left_alone() -> None:
    share_connections(object())
