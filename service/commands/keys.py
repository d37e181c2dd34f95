"""`expunge keys …`: API keys of clients, and the key the service signs with. Tested in `tests/service/test_cli.py`."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Column, Table

from service.commands.environment import Settings
from service.commands.screen import console

keys_app = typer.Typer(no_args_is_help=True, help="API keys of clients, and the signing key.")


@keys_app.command("init")
def keys_init() -> None:
    """Make the service's own keys in the home if there are none; to be brought to every other machine's home."""
    from service.keys.keyring import Keyring

    folder = Settings().keys_folder
    Keyring.open(folder)
    console.print(f"Keys in {folder}, readable by you alone; the public one is signing.pub.", soft_wrap=True)


@keys_app.command("create")
def keys_create(
    name: str,
    scope: Annotated[list[str], typer.Option(help="May be given several times.")],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; none: never.")] = None,
    most_open: Annotated[
        int | None, typer.Option(min=1, help="Open requests it may have; none: the setting's.")
    ] = None,
) -> None:
    """Make a key; it is shown once and stored only as a hash."""
    from service.context import Context
    from service.keys import api_keys
    from service.store.engine import session

    context = Context.open(Settings())
    now = context.now()
    expires = now + timedelta(days=days) if days else None
    with session(context.engine) as s:
        row, secret = api_keys.create_key(
            s, name=name, scopes=scope, now=now, key_id=secrets.token_hex(4), expires_at=expires, most_open=most_open
        )
        s.commit()
    console.print(f"Key {row.id} of {name}, for {', '.join(row.scopes)}; it is not shown again:", style="dim")
    print(secret)


@keys_app.command("list")
def keys_list() -> None:
    """Keys, without their secrets."""
    from service.context import Context
    from service.keys import api_keys
    from service.store.engine import reading

    context = Context.open(Settings())
    with reading(context.engine) as s:
        rows = api_keys.list_keys(s)
    whole = Column("id", no_wrap=True, min_width=max((len(row.id) for row in rows), default=0))  # to be copied
    names = ("name", "scopes", "created", "expires", "revoked", "old secret until", "most open")
    table = Table(whole, *(Column(name, overflow="fold") for name in names))
    for row in rows:
        moments = (row.created_at, row.expires_at, row.revoked_at, row.previous_until)
        times = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in moments)
        table.add_row(row.id, row.name, " ".join(row.scopes), *times, str(row.most_open or ""))
    console.print(table, crop=False)


@keys_app.command("rotate")
def keys_rotate(
    key_id: str,
    overlap_hours: Annotated[float, typer.Option(min=0, help="How long the old secret works too.")] = 0.0,
) -> None:
    """Give a client a new secret; its id, scopes and requests stay. It is shown once."""
    from service.context import Context
    from service.keys import api_keys
    from service.store.engine import session

    context = Context.open(Settings())
    until = context.now() + timedelta(hours=overlap_hours) if overlap_hours else None
    with session(context.engine) as s:
        row, secret = api_keys.rotate_key(s, key_id, old_until=until)
        s.commit()
    old = f"works until {until:%Y-%m-%d %H:%M} UTC" if until else "is useless from now on"
    console.print(f"Key {row.id} of {row.name} has a new secret, not shown again; the old one {old}:", style="dim")
    print(secret)


@keys_app.command("expire")
def keys_expire(
    key_id: str,
    days: Annotated[float, typer.Option(min=0, help="Days from now; 0: now.")],
) -> None:
    """Let a key end at a moment; a later call moves it, until it has been revoked."""
    from service.context import Context
    from service.keys import api_keys
    from service.store.engine import session

    context = Context.open(Settings())
    with session(context.engine) as s:
        row = api_keys.expire_key(s, key_id, at=context.now() + timedelta(days=days))
        s.commit()
    console.print(f"Key {key_id} ends at {row.expires_at:%Y-%m-%d %H:%M} UTC.")


@keys_app.command("revoke")
def keys_revoke(key_id: str) -> None:
    """Make a key useless from now on."""
    from service.context import Context
    from service.keys import api_keys
    from service.store.engine import session

    context = Context.open(Settings())
    with session(context.engine) as s:
        api_keys.revoke_key(s, key_id, now=context.now())
        s.commit()
    console.print(f"Key {key_id} is revoked.")


@keys_app.command("rotate-signing")
def keys_rotate_signing() -> None:
    """Sign certificates, checkpoints and callbacks with a new key; running processes take it at their next signature.

    The old private key is destroyed. Its public half stays published (`GET /v1/keys`, the home's `keys/retired`), and
    what it signed still verifies. Auditors and receivers of callbacks need the new public key.
    """
    import sqlalchemy as sa
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from sqlmodel import col, select

    from audit.proof.envelope import key_id
    from service.context import Context
    from service.store import ledger
    from service.store.engine import session
    from service.store.tables import CertificateRecord

    context, new = Context.open(Settings()), Ed25519PrivateKey.generate()
    after = key_id(new.public_key())
    with session(context.engine) as s:
        signed = s.exec(select(sa.func.max(col(CertificateRecord.created_at)))).one()
        now, before = context.now(), context.keyring.signing.current().published.key_id
        ledger.record(s, "key", now=now, retired=before, signing=after)
        context.keyring.signing.rotate(
            new, now=now, last_signed_at=signed, reached=lambda point: context.reached(f"rotation.{point}")
        )
        s.commit()
    console.print(f"Retired   {before}\nSigns now {after}\nPublic key {context.settings.keys_folder / 'signing.pub'}")
