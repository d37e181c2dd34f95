"""`expunge verify`: a certificate, checked offline by whoever has the file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.screen import NOT_CHECKED, can_show, fail, stating
from service.errors import StartupError

MARKS = {True: "✓", False: "✗", None: "·"}
ASCII_MARKS = {True: "[ok]", False: "[NO]", None: "[--]"}


def verify(
    certificate: Annotated[Path, typer.Argument(help="The certificate's file.")],
    *,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public keys you trust: PEM, or the JSON of /v1/keys; none: the file's own. May be repeated."
        ),
    ] = None,
    home: Annotated[bool, typer.Option("--home", help="Trust this home's keys, past ones included.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Weights that must be the certified ones.")] = None,
    log: Annotated[Path | None, typer.Option(help="All entries of the log, one a line.")] = None,
    since: Annotated[
        Path | None, typer.Option(help="A checkpoint of the log that you kept: the log must have grown from it.")
    ] = None,
    consistency: Annotated[
        Path | None, typer.Option(help="With --since, unless --log: the answer of /v1/log/consistency.")
    ] = None,
) -> None:
    """Check a certificate, or the record of a qualification, offline, from its file alone.

    Status 0: it is genuine; the first line says what it certifies. 1: it is not valid. 2: it was not checked, because
    something could not be read or written.
    """
    with stating() as findings:
        from audit.proof import certificate as certificates
        from audit.proof.log import read_checkpoint

        trusted, retired_at = _trusted(key or [], home=home)
        if weights is not None:
            weights.open("rb").close()
        kept = since.read_bytes().decode("utf-8", "replace") if since is not None else None
        if kept is not None:
            read_checkpoint(kept)
        result = certificates.verify(
            certificates.read_file(certificate),
            public_key=trusted or None,
            weights_path=weights,
            log_leaves=log.read_bytes().splitlines() if log else None,
            retired_at=retired_at,
            since=kept,
            consistency=_proof(consistency) if consistency is not None else None,
        )
        for check in result.checks:
            if (check.name, check.passed) == ("growth", None) and result.valid:
                fail(check.sentence, NOT_CHECKED)
        verdict = f"Verdict: {result.verdict}" if result.valid else "This certificate is NOT valid."
        findings.say(verdict, holds=result.valid)
        marks = MARKS if can_show("".join(MARKS.values())) else ASCII_MARKS
        for check in result.checks:
            findings.say(f"{marks[check.passed]} {check.name}: {check.sentence}")


def _trusted(paths: list[Path], *, home: bool) -> tuple[list[Any], dict[str, datetime]]:
    """Public keys of the files and of the home, and when the earlier ones ended."""
    from audit.proof.envelope import read_published_keys

    trusted: list[Any] = []
    retired_at: dict[str, datetime] = {}
    for path in paths:
        keys, ended = read_published_keys(path.read_bytes())
        trusted, retired_at = [*trusted, *keys], {**retired_at, **ended}
    if home:
        from service.keys.keyring import Keyring
        from service.settings import Settings

        folder = Settings().keys_folder
        if not (folder / "signing.pem").exists():
            raise StartupError(f"Expected the keys of a service in {folder}; set EXPUNGE_HOME.")
        published = Keyring.open(folder).signing.published()
        trusted += [each.public for each in published]
        retired_at |= {each.key_id: each.valid_until for each in published if each.valid_until}
    return trusted, retired_at


def _proof(path: Path) -> list[bytes]:
    """Hashes of an answer of `GET /v1/log/consistency`."""
    from audit.proof.log import from_base64, parse_json

    try:
        return [from_base64(node) for node in parse_json(path.read_bytes())["hashes"]]
    except (ValueError, LookupError, TypeError) as error:
        raise StartupError(f"Expected the answer of GET /v1/log/consistency in {path}, got {error!r}.") from None
