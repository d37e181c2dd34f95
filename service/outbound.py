"""Posting to a URL that a client chose, without becoming its way into the operator's network.

The name is resolved once; every address it has is checked; the connection goes to an address that was checked, while
TLS and the `Host` header use the name. A second look-up, where a hostile name server would answer otherwise
(rebinding), does not exist. Redirects are not followed, proxies of the environment not used, the answer's body not
read, and one deadline holds for everything from the connection to the answer's status. The exception is the look-up
itself, which ends when the system's resolver gives up.

Addresses of the public internet are allowed, after IANA's registries of special-purpose addresses (RFC 6890): of IPv6
only global unicast (2000::/3), which leaves out loopback, link-local, unique local, multicast, IPv4-mapped and NAT64
addresses, and in it not Teredo and 6to4, which lead to an IPv4 address. The operator's allow-list adds to them.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

import httpcore
import httpx

from service.errors import ExpungeError, StartupError
from service.settings import Settings

SECONDS: Final = 15.0
MOST_ADDRESSES: Final = 4  # tried one after the other; all are checked

_NOT_PUBLIC_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # public by its number, yet a cloud's host answers there to its guests only
    )
)  # fmt: skip
_PUBLIC_V6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(
    IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)  # Teredo and other protocols' own, documentation, 6to4, documentation

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")  # a host that ends like this is an IPv4 address
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.IGNORECASE)

Resolve = Callable[[str, int], Sequence[str]]


class OutboundError(ExpungeError):
    """No answer came; `detail` says why in words that tell a client nothing of the operator's network."""

    title = "No answer"


class RefusedTargetError(OutboundError):
    """Nothing was sent and nothing connected: the URL leads where callbacks may not go."""

    title = "Target refused"


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's; false for what is no address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if parsed.version == 4:
        return not any(parsed in network for network in _NOT_PUBLIC_V4)
    return parsed in _PUBLIC_V6 and not any(parsed in network for network in _NOT_PUBLIC_V6)


def literal_address(host: str) -> str | None:
    """The IP address that a host is, in any spelling a resolver takes for one (`127.1`, `0x7f000001`); none: a name."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return "0.0.0.0"  # noqa: S104  (no address and no name either: nothing to connect to)


@dataclass(frozen=True)
class AllowList:
    """Host names, and networks, that callbacks may go to although they are not public."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> AllowList:
        """From `name, address, network/bits, …`.

        Raises:
            StartupError: an entry is none of these.
        """
        hosts, networks = set(), []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ip_network(entry))
            except ValueError as error:
                if not _HOST_NAME.fullmatch(entry) or entry.rpartition(".")[2].isdigit():
                    raise StartupError(
                        f"Expected host names, addresses or networks (10.1.0.0/16) in callback_allow: {error}."
                    ) from None
                hosts.add(entry.lower())
        return cls(frozenset(hosts), tuple(networks))

    def allows(self, host: str, address: str) -> bool:
        """Whether a callback to this host may connect to this address of it."""
        if host in self.hosts or is_public(address):
            return True
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.networks)


def may_lead_out(url: str, allow: AllowList) -> bool:
    """False for a URL that evidently leads where callbacks may not go: an address that is not allowed, or this machine.

    Names are not looked up here: what they mean is checked at each attempt, on the connection itself.
    """
    try:
        host = _parse(url).raw_host.decode("ascii").rstrip(".").lower()
    except RefusedTargetError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return allow.allows(host, "127.0.0.1")
    address = literal_address(host)
    return address is None or allow.allows(host, address)


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
        target = _parse(url)
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


def _parse(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL:
        raise RefusedTargetError("The URL cannot be read.") from None
    if target.scheme != "https" or not target.raw_host or target.userinfo:
        raise RefusedTargetError("The URL is not https, has no host, or has a user name.")
    return target


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
