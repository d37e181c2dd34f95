"""All certificates of a home together, seen from the outside: each is genuine, and what they say fits together.

genuine   signature, inclusion and checkpoint hold against the published keys and log, by a check of the tests' own
          (`proof`), and by `expunge verify` in a process of its own
once      no request has two certificates, and the log holds no certificate that nobody can fetch
counted   the images destroyed are those that the bench counted in the folder before the request was filed; each older
          model version is in one run's certificates, and in those of one run only
announced the policy of a certificate is the one that the log bound its run to before, and so is the share of re-runs
chain     each run began from the weights that the one before put into service, and found the data as that one left them
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlmodel import select

from service.context import Context
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import CertificateRecord, ModelVersion
from tests.faults.proof import ProofError, Proven, prove
from tests.faults.watch import Person, client_of

_NOTHING = "0" * 64


def log_entries(client: httpx.Client) -> list[dict[str, Any]]:
    """The whole log as auditors get it."""
    entries: list[dict[str, Any]] = []
    while True:
        page = client.get("/v1/log/entries", params={"start": len(entries), "limit": 1000}).raise_for_status().json()
        entries += page["entries"]
        if not page["entries"] or len(entries) >= page["tree_size"]:
            return entries


def published_keys(client: httpx.Client) -> list[Any]:
    """Every public key that the service publishes."""
    return [
        load_pem_public_key(key["pem"].encode()) for key in client.get("/v1/keys").raise_for_status().json()["keys"]
    ]


def data_digest(folder: Path) -> str:
    """Manifest digest of a data folder, by no code of the product."""
    total = sha256(b"expunge faces 1\n")
    with (folder / "metadata.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            content = sha256((folder / row["file_name"]).read_bytes()).hexdigest()
            fields = [row["file_name"], row["user_id"], row["label"], row["split"], content]
            total.update(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
    return total.hexdigest()


def check_history(
    settings: Settings,
    filed: Mapping[str, Person],
    *,
    first_version: str,
    first_data: str,
    trained: Collection[str] = (),
    changed_data: Collection[str] = (),
    unserved: Collection[str] = (),
    expunge: Callable[..., tuple[int | None, str]],
) -> list[str]:
    """What is wrong with the certificates of a home.

    Args:
        filed: request id → person, of every request that the bench filed.
        first_version: weights the home began with.
        first_data: manifest digest of the data it began with.
        trained: weights that `expunge train` put into service since.
        changed_data: manifest digests of data that the bench changed itself.
        unserved: requests at whose swap nobody may have served, for the bench had killed serving processes.
        expunge: runs a command of that program in a process of its own; gives its status and what it said.
    """
    context = Context.open(settings)
    with reading(context.engine) as s:
        ids = [row.id for row in s.exec(select(CertificateRecord).order_by("log_index"))]  # type: ignore[arg-type]
        versions = list(s.exec(select(ModelVersion)))
    context.engine.dispose()
    with client_of(settings, 60.0) as client:
        entries = log_entries(client)
        keys = published_keys(client)
        raw = {name: client.get(f"/v1/certificates/{name}").raise_for_status().json() for name in ids}
    leaves, found, proven = [str(each["entry"]).encode() for each in entries], [], []
    for certificate in raw.values():
        try:
            proven.append(prove(certificate, keys, leaves))
        except ProofError as error:
            found.append(f"a certificate {error}")
    logged = sum(entry["kind"] == "certificate" for entry in entries)
    if logged != len(ids):
        found.append(f"the log has {logged} certificates, {len(ids)} can be fetched")
    of_request = Counter(each.predicate["request_id"] for each in proven if each.predicate["request_id"])
    found += [f"request {name[:8]} has {count} certificates" for name, count in of_request.items() if count > 1]
    for each in proven:
        found += _check_counts(each, filed, unserved)
    found += _check_announced(proven, [json.loads(leaf) for leaf in leaves])
    serving = {*trained, *_given_up(proven, [json.loads(leaf) for leaf in leaves], versions)}
    found += _check_chain(proven, first_version, {first_data, *changed_data}, serving, settings)
    found += _check_older_versions(proven, versions)
    return found + list(_verified_apart(settings, raw.values(), expunge))


def _check_counts(each: Proven, filed: Mapping[str, Person], unserved: Collection[str]) -> Iterator[str]:
    predicate = each.predicate
    person = filed.get(predicate["request_id"] or "")
    if person is None:
        return
    name = f"the certificate of request {predicate['request_id'][:8]}"
    if not predicate["purge"]:
        yield f"{name} speaks of no purge"
        return
    destroyed = predicate["purge"]["destroyed"]
    if destroyed.get("image files") != person.n_images:
        yield f"{name} says {destroyed.get('image files')} image files, the folder held {person.n_images}"
    if destroyed.get("copies of image files", 0) != person.n_copies:
        yield f"{name} says {destroyed.get('copies of image files', 0)} copies, the folder held {person.n_copies}"
    expected = "PASSED" if person.n_trained else "NOT_REQUIRED"
    if predicate["verdict"] != expected:
        yield f"{name} has the verdict {predicate['verdict']}, expected {expected}"
    if expected == "PASSED" and not predicate["barrier"] and predicate["request_id"] not in unserved:
        yield f"{name} names no serving process"
    if any(row["generation"] != predicate["generation"] for row in predicate["barrier"]):
        yield f"{name} names a process of another generation"


def _runs(proven: Sequence[Proven]) -> dict[str, list[Proven]]:
    """Certificates by run, in the order of the log."""
    runs: dict[str, list[Proven]] = {}
    for each in sorted(proven, key=lambda each: each.index):
        runs.setdefault(each.predicate["run_id"], []).append(each)
    return runs


def _check_announced(proven: Sequence[Proven], entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was bound in the log before a run began, and the audit that passed before its weights were deployed."""
    bound = {entry["run_id"]: (index, entry) for index, entry in enumerate(entries) if entry["kind"] == "policy"}
    passed = {
        (entry["run_id"], entry["weights"]): index
        for index, entry in enumerate(entries)
        if entry["kind"] == "audit" and entry["verdict"] == "PASSED"
    }
    for each in proven:
        predicate, name = each.predicate, f"a certificate of run {each.predicate['run_id'][:8]}"
        index, entry = bound.get(predicate["run_id"], (each.index, {}))
        if index >= each.index:
            yield f"{name} has no entry of its policy before it in the log"
        elif predicate["policy"]["digest"] != entry["policy_digest"]:
            yield f"{name} names another policy than the one its run was bound to"
        if (
            predicate["verdict"] == "PASSED"
            and passed.get((predicate["run_id"], each.weights), each.index) >= each.index
        ):
            yield f"{name} is about weights whose passed audit the log does not have before it"
        rerun = predicate["rerun"]
        if predicate["verdict"] == "PASSED" and (rerun is None or (rerun["share"], rerun["key_sha256"]) != (
            entry.get("rerun_share"), entry.get("rerun_key_sha256")
        )):  # fmt: skip
            yield f"{name} does not say of re-runs what was announced"


def _given_up(
    proven: Sequence[Proven], entries: Sequence[Mapping[str, Any]], versions: Sequence[ModelVersion]
) -> set[str]:
    """Weights that runs put into service which then could not begin to destroy: another run begins from these."""
    ended = {each.predicate["run_id"] for each in proven if each.predicate["request_id"]}
    audits = [entry for entry in entries if entry["kind"] == "audit" and entry["verdict"] == "PASSED"]
    passed = {entry["weights"] for entry in audits if entry["run_id"] not in ended}
    return passed & {row.digest for row in versions if row.generation is not None}


def _check_chain(
    proven: Sequence[Proven], weights: str, data: set[str], trained: set[str], settings: Settings
) -> Iterator[str]:
    changed = set(data)
    for run, certificates in _runs(proven).items():
        name, ended = f"run {run[:8]}", [each for each in certificates if each.predicate["request_id"]]
        if any(each.predicate["base_digest"] not in {weights, *trained} for each in certificates):
            yield f"{name} began from weights that were not in service before it"
        if any(each.predicate["procedure"]["data_digest_before"] not in data for each in certificates):
            yield f"{name} found other data than the certificate before it left"
        for each in certificates:
            after = each.predicate["procedure"]["data_digest_after"]
            if each not in ended and after != each.predicate["procedure"]["data_digest_before"]:
                yield f"{name} changed data though its candidate did not pass"
        if not ended:
            continue
        if len(left := {each.predicate["procedure"]["data_digest_after"] for each in ended}) > 1:
            yield f"{name} left data of {len(left)} digests"
        data = changed | left
        passed = {each.weights for each in ended if each.predicate["verdict"] == "PASSED"}
        if len(passed) > 1:
            yield f"{name} certifies {len(passed)} different weights"
        weights = next(iter(passed), weights)
    try:
        if data_digest(settings.data_folder) not in data:
            yield "the data are not what the last certificate says was left of them"
    except FileNotFoundError:
        yield "the data's table names files that are not there"


def _check_older_versions(proven: Sequence[Proven], versions: Sequence[ModelVersion]) -> Iterator[str]:
    """Each run destroys at least the version it began from; no version is destroyed by two runs."""
    total = n_runs = 0
    for run, certificates in _runs(proven).items():
        counts = {
            each.predicate["purge"]["destroyed"].get("older model versions")
            for each in certificates
            if each.predicate["verdict"] == "PASSED" and each.predicate["purge"]
        }
        if not counts:
            continue
        if len(counts) > 1 or not (count := next(iter(counts))):
            yield f"run {run[:8]} says {counts} older model versions were destroyed, expected one number of at least 1"
            continue
        total, n_runs = total + count, n_runs + 1
    deployed = sum(row.state == "destroyed" and row.generation is not None for row in versions)
    destroyed = sum(row.state == "destroyed" for row in versions)
    if not min(n_runs, deployed) <= total <= destroyed:
        yield f"certificates of {n_runs} runs say {total} older model versions were destroyed, of {destroyed} in all"


def _verified_apart(
    settings: Settings, certificates: Collection[Mapping[str, Any]], expunge: Callable[..., tuple[int | None, str]]
) -> Iterator[str]:
    """`expunge verify` on each file, each time in a process of its own."""
    with tempfile.TemporaryDirectory() as name, client_of(settings) as client:
        keys, file = Path(name) / "keys.json", Path(name) / "certificate.json"
        keys.write_bytes(client.get("/v1/keys").content)
        for certificate in certificates:
            file.write_text(json.dumps(certificate, indent=2))
            status, said = expunge("verify", "--key", str(keys), str(file))
            if status != 0:
                yield f"expunge verify refuses a certificate: {said.strip()[-300:]}"
