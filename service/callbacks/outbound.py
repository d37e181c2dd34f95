"""Posting to a URL that a client chose, without becoming its way into the operator's network.

The name is resolved once; every address it has is checked; the connection goes to an address that was checked, while
TLS and the `Host` header use the name. A second look-up, where a hostile name server would answer otherwise
(rebinding), does not exist. Redirects are not followed, proxies of the environment not used, the answer's body not
read, and one deadline holds for everything from the connection to the answer's status. The exception is the look-up
itself, which ends when the system's resolver gives up.

Which addresses are allowed: `service.callbacks.addresses`.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpcore

from service.callbacks.addresses import AllowList, OutboundError, RefusedTargetError, target_of
from service.errors import StartupError
from service.settings import Settings

SECONDS: Final = 15.0
MOST_ADDRESSES: Final = 4  # tried one after the other; all are checked


Resolve = Callable[[str, int], Sequence[str]]


def look_up(host: str, port: int) -> Sequence[str]:
    """Addresses of a host, in the system's order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Sender:
    """Posts to checked addresses over verified TLS. Safe to share between threads."""

    allow: AllowList
    tls: ssl.SSLContext
    seconds: float = SECONDS
    resolve: Resolve = look_up
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def open(cls, settings: Settings) -> Sender:
        """Sender with the allow-list and the certificate authorities of the settings.

        Raises:
            StartupError: either cannot be read.
        """
        tls = ssl.create_default_context()
        if settings.callback_ca_file:
            try:
                tls.load_verify_locations(cafile=settings.callback_ca_file)
            except OSError as error:  # SSLError is one
                raise StartupError(f"Expected certificates (PEM) in {settings.callback_ca_file}: {error}.") from error
        return cls(AllowList.parse(settings.callback_allow), tls)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post the body; gives the HTTP status of the answer, whatever it is.

        Raises:
            RefusedTargetError: not https, or an address of the host is not allowed.
            OutboundError: the host has no address, or no answer came in time.
        """
        target = target_of(url)
        host, port = target.raw_host.decode("ascii").rstrip("."), target.port or 443
        addresses = self._checked_addresses(host, port)
        deadline = self.clock() + self.seconds
        backend = _CheckedAddresses(addresses, lambda: deadline - self.clock())
        sent = [("Host", target.netloc.decode("ascii")), *headers.items()]
        where = httpcore.URL(scheme=b"https", host=target.raw_host, port=port, target=target.raw_path)
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self.tls, network_backend=backend) as pool,
                pool.stream("POST", where, headers=sent, content=body) as answer,
            ):
                return answer.status
        except httpcore.TimeoutException:
            raise OutboundError("No answer in time.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
                raise OutboundError("No TLS connection whose certificate can be verified.") from error
            raise OutboundError("No connection, or no HTTP answer on it.") from error

    def _checked_addresses(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the host, each one allowed: a host with one that is not has something in mind."""
        try:
            addresses = self.resolve(host, port)
        except (OSError, UnicodeError):
            addresses = ()
        if not addresses:
            raise OutboundError("The host name has no address.")
        if not all(self.allow.allows(host, address) for address in addresses):
            raise RefusedTargetError("The host name has an address that callbacks may not go to.")
        return addresses[:MOST_ADDRESSES]


class _CheckedAddresses(httpcore.NetworkBackend):
    """Connects to the given addresses whatever host is asked for; nothing outlasts `seconds_left`."""

    def __init__(self, addresses: Sequence[str], seconds_left: Callable[[], float]) -> None:
        self._addresses = addresses
        self._seconds_left = seconds_left
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Stream to the first address that answers, each given its share of the time left."""
        for n_left, address in zip(range(len(self._addresses), 0, -1), self._addresses, strict=True):
            share = _positive(self._seconds_left()) / n_left
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if n_left == 1:
                    raise
            else:
                return _TimedStream(stream, self._seconds_left)
        raise httpcore.ConnectError("Expected an address to connect to.")


class _TimedStream(httpcore.NetworkStream):
    """A stream whose every wait ends at the deadline, so that a byte now and then does not keep us."""

    def __init__(self, stream: httpcore.NetworkStream, seconds_left: Callable[[], float]) -> None:
        self._stream = stream
        self._seconds_left = seconds_left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Next bytes."""
        return self._stream.read(max_bytes, _positive(self._seconds_left()))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all bytes."""
        self._stream.write(buffer, _positive(self._seconds_left()))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """The same stream after the handshake."""
        encrypted = self._stream.start_tls(ssl_context, server_hostname, _positive(self._seconds_left()))
        return _TimedStream(encrypted, self._seconds_left)

    def get_extra_info(self, info: str) -> Any:
        """What the wrapped stream knows of itself."""
        return self._stream.get_extra_info(info)


def _positive(seconds_left: float) -> float:
    if seconds_left <= 0:
        raise httpcore.ReadTimeout("The deadline has passed.")
    return seconds_left
