"""Where callbacks may go: addresses of the public internet, and what the operator's allow-list adds to them.

Public is what IANA's registries of special-purpose addresses (RFC 6890) leave: of IPv6 only global unicast (2000::/3),
which leaves out loopback, link-local, unique local, multicast, IPv4-mapped and NAT64 addresses, and in it not Teredo
and 6to4, which lead to an IPv4 address. `ipaddress`'s `is_global` would let multicast pass, and differs from one patch
release of Python to the next.

Tested in `tests/service/callbacks/test_outbound.py`.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

import httpx

from service.errors import ExpungeError, StartupError

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
    """Host names in their ASCII form, and networks, that callbacks may go to although they are not public."""

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
                name = _ascii_name(entry)
                if not _HOST_NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
                    raise StartupError(
                        f"Expected host names, addresses or networks (10.1.0.0/16) in callback_allow: {error}."
                    ) from None
                hosts.add(name)
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


def _ascii_name(host: str) -> str:
    """A host as `target_of` gives it: an international name in its ASCII form (`xn--…`); empty: it has none."""
    try:
        return httpx.URL(scheme="https", host=host).raw_host.decode("ascii").rstrip(".").lower()
    except httpx.InvalidURL:
        return ""


def may_lead_out(url: str, allow: AllowList) -> bool:
    """False for a URL that evidently leads where callbacks may not go: an address that is not allowed, or this machine.

    Names are not looked up here: what they mean is checked at each attempt, on the connection itself.
    """
    try:
        host = target_of(url).raw_host.decode("ascii").rstrip(".").lower()
    except RefusedTargetError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return allow.allows(host, "127.0.0.1")
    address = literal_address(host)
    return address is None or allow.allows(host, address)


def target_of(url: str) -> httpx.URL:
    """A callback's URL in its parts; filing and sending read it by the same parser.

    Raises:
        RefusedTargetError: it cannot be read, is not https, has no host, or has a user name.
    """
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL:
        raise RefusedTargetError("The URL cannot be read.") from None
    if target.scheme != "https" or not target.raw_host or target.userinfo:
        raise RefusedTargetError("The URL is not https, has no host, or has a user name.")
    return target
