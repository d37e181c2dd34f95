"""Records of qualifications: what `verify` looks for in one, and what it says of it.

A record is a file like a certificate (`audit.proof.certificate.certificate_file`): a signed in-toto statement whose
subject is the digest of a method's code, with its place in the log. It names the entry of the log that drew the lot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from audit.proof import envelope as dsse
from audit.proof import log
from audit.proof.log import LogError

PREDICATE_TYPE = "https://expunge.example/method-qualification/v1"
RECORD_KIND, LOT_KIND = "qualification", "qualification-lot"
QUALIFIED, NOT_QUALIFIED = "QUALIFIED", "NOT QUALIFIED"

LIMITS = (
    "The statement is about subjects of this data, under this recipe, these settings and this code. It says nothing of "
    "other data, and of a single subject only what is likely.",
    "All runs begin from one original model: how much depends on its luck is not measured.",
    "Few probe subjects show little. Settings chosen after looking at earlier lots are flattered by this one; the "
    "number of the lot says how many there were for these data.",
    "Runs and retrained models are compared by their outputs on the images and views of the probe subjects, and by a "
    "summary of the layer before the last. They do not exclude differences that are too small for this number of "
    "models, or that show only by other means.",
)


def log_entry(envelope: Mapping[str, Any]) -> bytes:
    """Log entry of a sealed record: the SHA-256 of its envelope and nothing of its contents."""
    return log.entry(RECORD_KIND, envelope_sha256=dsse.digest(envelope))


def verdict_of(predicate: Mapping[str, Any]) -> str:
    """What the record certifies."""
    return QUALIFIED if predicate["passed"] is True else NOT_QUALIFIED


def sentence_of(predicate: Mapping[str, Any]) -> str:
    """Whose record it is, what of, and its statement."""
    number, until = int(predicate["lot"]["number"]), str(predicate["expires_at"])[:10]
    did = f"qualified, until {until}" if predicate["passed"] is True else "did not qualify"
    lot = f"by lot number {number} for this method and these data"
    return f"It certifies that {predicate['method']} {did}, {lot}. {predicate['statement']}"


def remarks(predicate: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a record says beside its statement: how fast runs came back, canaries, features and retained subjects.

    A record from before there were these says that they were not measured.
    """
    return _on_relearning(predicate), _on_canaries(predicate), _on_looks(predicate)


def _on_relearning(predicate: Mapping[str, Any]) -> str:
    figures = [probe["figures"] for probe in predicate["probes"] if probe.get("figures")]
    found = [each["relearning"] for each in figures if each.get("relearning")]
    if not found:
        return "Relearning was not measured."
    n, k = (sum(each[name] for each in found) for name in ("n_runs", "n_told_apart"))
    n_apart = sum(each["detection_p"] < 0.05 for each in found)
    return (
        f"Relearning: taught half of the images again, {k} of {n} runs came back on the others faster than retrained "
        f"models do; on {n_apart} of {len(found)} probe subjects the runs together were told from retrained models."
    )


def _on_canaries(predicate: Mapping[str, Any]) -> str:
    found = predicate.get("canaries")
    if not found:
        return "No canaries were planted."
    told = f"Canaries: of {found['n_canaries']} planted subjects the gate rejects "
    kinds = [("models that forgot nothing", found["nothing"]), ("retrained models", found["retrained"])]
    kinds += [(f"runs of {name}", each) for name, each in found["methods"].items()]
    return told + ", ".join(f"{each['n_rejected']} of {each['n']} {what}" for what, each in kinds) + "."


def _on_looks(predicate: Mapping[str, Any]) -> str:
    """What the record says of features and of retained subjects, which have no bar; older records have neither."""
    figures = [probe["figures"] for probe in predicate["probes"] if probe.get("figures") is not None]
    features = [each["features"] for each in figures if each.get("features") is not None]
    exposed = [each["exposed"] for each in figures if each.get("exposed") is not None]
    told = "Features: not measured."
    if features:
        n_apart, n_runs = (sum(each[name] for each in features) for name in ("n_told_apart", "n_runs"))
        told = f"By features {n_apart} of {n_runs} runs are told apart from retrained models."
    others = "Retained subjects: not measured."
    if exposed:
        n_exposing = sum(sum(n > 0 for n in each["n_more_exposed"]) for each in exposed)
        others = f"{n_exposing} of {sum(each['n_runs'] for each in exposed)} runs expose retained subjects more."
    return f"{told} {others}"


def drew_lot(predicate: Mapping[str, Any], index: int, log_leaves: Sequence[bytes | str] | None) -> bool | None:
    """Whether the log drew exactly this lot before the record of entry `index`; None without the log's entries."""
    if log_leaves is None:
        return None
    place = int(predicate["lot"]["log_index"])
    if not 0 <= place < min(index, len(log_leaves)):
        return False
    try:
        lot = log.parse_json(log_leaves[place])
    except (LogError, ValueError):
        return False
    return isinstance(lot, dict) and matches(lot, predicate)


def matches(lot: Mapping[str, Any], predicate: Mapping[str, Any]) -> bool:
    """Whether an entry of the log is the lot of a record: the same probes, and all that was fixed beforehand."""
    fixed = (
        "method", "settings_digest", "method_code", "training_code", "data_digest", "bars", "n_subjects",
        "n_drawn_from", "n_references", "n_runs",
    )  # fmt: skip
    return (
        lot.get("kind") == LOT_KIND
        and lot.get("probes") == [probe["commitment"] for probe in predicate["probes"]]
        and lot.get("lot_number") == predicate["lot"]["number"]
        and lot.get("recipe_digest") == predicate["recipe"]["digest"]
        and lot.get("policy_digest") == predicate["policy"]["digest"]
        and lot.get("n_canaries", 0) == (predicate.get("canaries") or {}).get("n_canaries", 0)
        and all(lot.get(name) == predicate[name] for name in fixed)
    )
