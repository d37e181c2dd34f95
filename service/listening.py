"""Addresses that the listeners take: what `EXPUNGE_HOST` and `EXPUNGE_CONSOLE_HOST` mean, the same for both.

A listener has one address. A name means the address it has, the IPv4 one if it has both. `0.0.0.0` is every IPv4
address of the machine, `::` every address, IPv4 and IPv6.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

from service.errors import StartupError

if TYPE_CHECKING:
    from service.settings import Settings

Place = Literal["", "console_"]
"""Prefix of the settings of a listener: of the API's, of the operators'."""


class PortTakenError(StartupError):
    """Another program listens there."""


def address_to_listen_on(settings: Settings, place: Place = "") -> str:
    """IP address of a listener.

    Raises:
        StartupError: the setting is no address and no name of one.
    """
    host: str = getattr(settings, f"{place}host")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise StartupError(
            f"Expected an IP address of this machine, or a name of one, in EXPUNGE_{place.upper()}HOST, found "
            f"{host!r}: {error}. Set 127.0.0.1 for this machine alone, 0.0.0.0 for all its IPv4 addresses, :: for all."
        ) from None
    addresses = [str(address[0]) for *_, address in found]
    return next((address for address in addresses if ":" not in address), addresses[0])


def listen(settings: Settings, place: Place = "") -> socket.socket:
    """A socket that listens where a listener is to.

    Raises:
        PortTakenError: another program listens there.
        StartupError: this machine does not have the address, or may not use the port.
    """
    address, port = address_to_listen_on(settings, place), getattr(settings, f"{place}port")
    is_four = ":" not in address
    try:
        return socket.create_server(
            (address, port),
            family=socket.AF_INET if is_four else socket.AF_INET6,
            dualstack_ipv6=not is_four and ip_address(address).is_unspecified,
        )
    except (OSError, ValueError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        name = f"EXPUNGE_{place.upper()}"
        raise (PortTakenError if is_taken else StartupError)(
            f"Expected to listen on {address}, port {port}: {error}. Set another {name}HOST or {name}PORT, or stop "
            "what listens there."
        ) from None


def url_of(settings: Settings, place: Place = "") -> str:
    """Where this machine itself reaches a listener."""
    host: str = getattr(settings, f"{place}host")
    try:
        address = ip_address(host)
    except ValueError:
        pass  # a name
    else:
        if address.is_unspecified:
            host = "127.0.0.1"
        elif address.version == 6:
            host = f"[{host}]"
    return f"http://{host}:{getattr(settings, f'{place}port')}"
