from __future__ import annotations

import base64
import ipaddress
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from service.callbacks.addresses import (
    AllowList,
    OutboundError,
    RefusedTargetError,
    is_public,
    literal_address,
    may_lead_out,
)
from service.callbacks.delivery import deliver_due
from service.callbacks.outbound import Sender, look_up
from service.context import Context
from service.errors import StartupError
from service.launch import free_ports
from service.settings import Settings
from service.store.engine import session
from service.store.tables import CallbackDelivery
from tests.waiting import PATIENCE_SECONDS, join

NAME = "receiver.test"  # in no DNS: who reaches it used the address that was checked

REFUSED_V4 = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1
    172.31.255.255 192.0.0.9 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
"""
REFUSED_V6 = """
    :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1
    100::1 2001::1 2001:0:808:808::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:808:808:: 3fff::1 5f00::1 fc00::1
    fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
"""
NO_ADDRESSES = "localhost example.org 127.1 2130706433 0x7f000001 08.8.8.8"
PUBLIC_V4 = "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.0 172.32.0.1 192.0.1.1 223.255.255.255"
PUBLIC_V6 = "2606:4700::1111 2a00::1"


@pytest.mark.parametrize("address", f"{REFUSED_V4} {REFUSED_V6} {NO_ADDRESSES}".split())
def test_refuses_what_is_not_the_public_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", f"{PUBLIC_V4} {PUBLIC_V6}".split())
def test_takes_public_addresses(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
def test_is_never_laxer_than_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_gets_in_as_ipv6(address: ipaddress.IPv4Address) -> None:
    for prefix in ("::", "::ffff:", "::ffff:0:", "64:ff9b::"):
        assert not is_public(f"{prefix}{address}")
    high, low = divmod(int(address), 1 << 16)
    assert not is_public(f"2002:{high:x}:{low:x}::1")
    assert not is_public(f"2001:0:{high:x}:{low:x}::1")


@given(st.ip_addresses())
def test_a_literal_is_judged_before_anything_is_sent_as_it_is_on_the_connection(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    host = str(address) if address.version == 4 else f"[{address}]"
    assert may_lead_out(f"https://{host}/hook", AllowList()) == is_public(str(address))
    assert may_lead_out(f"https://{host}/hook", AllowList.parse(str(address)))


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_ipv4_address_is_that_address(address: ipaddress.IPv4Address) -> None:
    number, (a, b, c, d) = int(address), str(address).split(".")
    for spelling in (
        f"{number}",
        f"{number:#x}",
        f"{a}.{b}.{(int(c) << 8) + int(d)}",
        f"{int(a):#o}.{b}.{c}.{d}".replace("0o", "0"),
    ):
        assert literal_address(spelling) == str(address)


def test_the_allow_list_adds_hosts_and_networks() -> None:
    allow = AllowList.parse(" Hooks.corp.example, 10.20.0.0/16,,192.168.1.7,fd00::/8 ")
    assert allow.allows("hooks.corp.example", "10.0.0.1")
    assert allow.allows("other.example", "10.20.3.4")
    assert allow.allows("other.example", "192.168.1.7")
    assert allow.allows("other.example", "fd12::1")
    for address in ("10.21.0.1", "192.168.1.8", "::ffff:10.20.3.4", "hooks.corp.example"):
        assert not allow.allows("other.example", address)
    assert not allow.allows("x.hooks.corp.example", "10.0.0.1")
    assert AllowList.parse("") == AllowList()


@pytest.mark.parametrize(
    "listed", ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example", "XN--BCHER-KVA.example"]
)
def test_an_international_name_is_allowed_in_either_form(listed: str) -> None:
    """To an allowed host there is no connection, since nobody listens; the others are refused before one is tried."""
    (port,) = free_ports(1)
    sender = Sender(AllowList.parse(listed), ssl.create_default_context(), resolve=lambda *_: ["127.0.0.1"])
    for host in ("bücher.example", "Bücher.Example", "xn--bcher-kva.example", "XN--bcher-kva.example."):
        with pytest.raises(OutboundError, match="No connection"):
            sender.post(f"https://{host}:{port}/", {}, b"")
    with pytest.raises(RefusedTargetError):
        sender.post(f"https://bucher.example:{port}/", {}, b"")


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.0/33", "10.0.0.1/8", "https://a.example", "a.example:443", "*", "10.0.0", "::1/x", "a b", "ä" * 70],
)
def test_an_unreadable_allow_list_stops_the_start(entry: str) -> None:
    with pytest.raises(StartupError, match="callback_allow"):
        AllowList.parse(f"a.example,{entry}")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]", "[::]"]
)
def test_no_spelling_of_this_machine_gets_through(host: str) -> None:
    sender = Sender(AllowList(), ssl.create_default_context())
    with pytest.raises(OutboundError) as caught:
        sender.post(f"https://{host}:9/", {}, b"")
    # a system without IPv6 may know no address of some; it must never have come to a connection
    assert isinstance(caught.value, RefusedTargetError) or "no address" in caught.value.detail
    assert "127" not in caught.value.detail


@pytest.mark.parametrize(
    "url",
    ["http://8.8.8.8/", "ftp://8.8.8.8/", "https:///path", "https://user@8.8.8.8/", "https://[::1", "8.8.8.8", ""],
)
def test_refuses_other_urls(url: str) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise AssertionError("Nothing is looked up.")

    with pytest.raises(RefusedTargetError):
        Sender(AllowList(), ssl.create_default_context(), resolve=resolve).post(url, {}, b"")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".example", "a..example", "exa mple.com"])
def test_a_name_without_address_is_no_answer(host: str) -> None:
    def resolve(name: str, port: int) -> list[str]:
        if name == "nowhere.invalid":  # what the system says of it, without asking a name server
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return list(look_up(name, port))

    with pytest.raises(OutboundError, match="no address"):
        Sender(AllowList(), ssl.create_default_context(), resolve=resolve).post(f"https://{host}/", {}, b"")


def test_one_forbidden_address_among_several_refuses_all() -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        return ["8.8.8.8", "2606:4700::1111", "1.1.1.1", "9.9.9.9", "10.0.0.1"]

    with pytest.raises(RefusedTargetError):
        Sender(AllowList(), ssl.create_default_context(), resolve=resolve).post("https://mixed.example/", {}, b"")


@dataclass
class Seen:
    """What the receiver got: server names asked for in TLS, and (path, headers, body) of posts."""

    names: list[str | None] = field(default_factory=list)
    posts: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@dataclass
class Place:
    """A receiver over TLS on loopback, and a sender that may go there."""

    port: int
    seen: Seen
    sender: Sender
    looked_up: list[tuple[str, int]]

    def post(self, path: str = "/hook", **options: object) -> int:
        """Post to the receiver's name."""
        return replace(self.sender, **options).post(  # type: ignore[arg-type]
            f"https://{NAME}:{self.port}{path}", {"X-Test": "1"}, b'{"a":1}'
        )


Behave = Callable[[BaseHTTPRequestHandler], None]
NewPlace = Callable[..., AbstractContextManager[Place]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate of `receiver.test`, its own authority, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


@pytest.fixture
def new_place(certificate: tuple[Path, Path], settings: Settings) -> NewPlace:
    """`with new_place(behave) as place`: a receiver that answers as `behave` does (204 if not given)."""

    @contextmanager
    def place(behave: Behave | None = None, addresses: tuple[str, ...] = ("127.0.0.1",)) -> Iterator[Place]:
        seen, looked_up = Seen(), list[tuple[str, int]]()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
        tls.sni_callback = lambda _socket, name, _context: seen.names.append(name)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                self.request = tls.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self) -> None:
                super().finish()
                self.request.close()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.posts.append((self.path, dict(self.headers), body))
                self.close_connection = True
                (behave or answer_with(204))(self)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            block_on_close = True
            daemon_threads = False

            def handle_error(self, *_: object) -> None: ...  # handshakes that the client broke off

        def resolve(host: str, port: int) -> list[str]:
            looked_up.append((host, port))
            return list(addresses)

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            open_to_tests = Settings(
                home=settings.home, callback_allow="127.0.0.0/30", callback_ca_file=str(certificate[0])
            )
            try:
                sender = replace(Sender.open(open_to_tests), seconds=PATIENCE_SECONDS, resolve=resolve)
                yield Place(server.server_port, seen, sender, looked_up)
            finally:
                server.shutdown()
                join(thread)

    return place


def answer_with(status: int, **headers: str) -> Behave:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return behave


def test_connects_to_the_checked_address_under_the_name(new_place: NewPlace) -> None:
    with new_place() as place:
        assert place.post("/hook?a=b") == 204
    (path, headers, body) = place.seen.posts[0]
    assert (path, body, headers["Host"], headers["X-Test"]) == (
        "/hook?a=b", b'{"a":1}', f"{NAME}:{place.port}", "1",
    )  # fmt: skip
    assert place.seen.names == [NAME]
    assert place.looked_up == [(NAME, place.port)]  # once: no second answer could differ from the checked one


def test_a_name_that_changes_its_address_gains_nothing(new_place: NewPlace) -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    used: list[list[str]] = []

    def rebinding(_host: str, _port: int) -> list[str]:
        used.append(next(answers))
        return used[-1]

    with new_place() as place, pytest.raises(OutboundError):
        # no time is left for the public address; the second answer would lead to the receiver
        place.post(resolve=rebinding, seconds=1e-9)
    assert used == [["8.8.8.8"]]
    assert not place.seen.posts


def test_follows_no_redirect(new_place: NewPlace) -> None:
    with new_place(answer_with(307, Location="/elsewhere")) as place:
        assert place.post() == 307
    assert [path for path, _, _ in place.seen.posts] == ["/hook"]


def test_uses_no_proxy_of_the_environment(new_place: NewPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with new_place() as place:
        assert place.post() == 204


def test_tries_the_next_address(new_place: NewPlace) -> None:
    with new_place(addresses=("127.0.0.2", "127.0.0.1")) as place:  # nothing listens on the first
        assert place.post() == 204


@pytest.mark.parametrize("status", [200, 301, 404, 410, 503])
def test_gives_the_status_whatever_it_is(new_place: NewPlace, status: int) -> None:
    with new_place(answer_with(status)) as place:
        assert place.post() == status


def test_does_not_read_the_answer(new_place: NewPlace) -> None:
    n_sent = 0

    def flood(handler: BaseHTTPRequestHandler) -> None:
        nonlocal n_sent
        answer_with(200)(handler)
        with suppress(OSError):
            while n_sent < 1 << 30:
                n_sent += handler.wfile.write(bytes(1 << 16))

    with new_place(flood) as place:
        assert place.post() == 200
    assert n_sent < 64 << 20  # what the sockets' buffers took before the connection was closed


@pytest.mark.parametrize(
    ("begin", "more"), [(b"HTTP/1.1 200 OK\r\nX: ", b"x"), (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n")]
)
def test_one_deadline_holds_for_everything(new_place: NewPlace, begin: bytes, more: bytes) -> None:
    """A server that always has a little more to say, and would for a hundred seconds, is not listened to that long."""
    said_all = []

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(begin)
            for _ in range(5000):
                handler.wfile.write(more)
                time.sleep(0.02)
            said_all.append(True)

    with new_place(drip) as place, pytest.raises(OutboundError, match="in time"):
        place.post(seconds=0.5)
    assert not said_all


def test_endless_headers_and_garbage_are_no_answer(new_place: NewPlace) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000)

    for behave in (endless, lambda handler: handler.wfile.write(b"SSH-2.0\r\n"), lambda _: None):
        with new_place(behave) as place, pytest.raises(OutboundError, match="no HTTP answer"):
            place.post()


def test_verifies_the_certificate_and_its_name(new_place: NewPlace) -> None:
    with new_place() as place:
        with pytest.raises(OutboundError, match="certificate"):
            place.post(tls=ssl.create_default_context())  # does not know the authority
        with pytest.raises(OutboundError, match="certificate"):
            place.sender.post(f"https://other.test:{place.port}/", {}, b"")
    assert not place.seen.posts


def test_the_file_of_authorities_is_read_at_the_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(StartupError, match=name):
            Sender.open(Settings(home=settings.home, callback_ca_file=str(tmp_path / name)))


def test_a_stored_delivery_arrives(new_place: NewPlace, context: Context) -> None:
    with new_place() as place, session(context.engine) as s:
        url = f"https://{NAME}:{place.port}/hook"
        s.add(
            CallbackDelivery(
                request_id="r-0001", url=url, body='{"type":"x"}', created_at=context.now(),
                next_attempt_at=context.now(), finished_at=None,
            )
        )  # fmt: skip
        s.commit()
        assert deliver_due(context, send=place.sender.post, rng=random.Random(0)) == 1
    ((_, headers, body),) = place.seen.posts
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64decode(headers["webhook-signature"].removeprefix("v1a,"))
    context.keyring.public_key.verify(signature, signed)
    assert (headers["Content-Type"], body) == ("application/json", b'{"type":"x"}')
    with session(context.engine) as s:
        assert s.exec(select(CallbackDelivery.status)).one() == "delivered"
