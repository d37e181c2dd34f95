"""Records of qualifications: what is said of one, and whether its lot is the one that the log drew."""

from __future__ import annotations

from typing import Any

import pytest

from audit.proof import log
from audit.proof.qualification import LOT_KIND, drew_lot, log_entry, matches, remarks, sentence_of, verdict_of

FIXED = {
    "method": "remix", "settings_digest": "s", "method_code": "m", "training_code": "t", "data_digest": "d",
    "bars": {"cost_share_max": 0.2}, "n_subjects": 40, "n_drawn_from": 36, "n_references": 24, "n_runs": 24,
}  # fmt: skip
LOT: dict[str, Any] = {
    **FIXED, "kind": LOT_KIND, "probes": ["a", "b"], "lot_number": 3, "recipe_digest": "r", "policy_digest": "p",
}  # fmt: skip
RECORD: dict[str, Any] = {
    **FIXED, "probes": [{"commitment": "a"}, {"commitment": "b"}], "lot": {"number": 3, "log_index": 1},
    "recipe": {"digest": "r"}, "policy": {"digest": "p"}, "passed": True, "statement": "All 2 of 2.",
    "expires_at": "2026-07-30T12:00:00Z",
}  # fmt: skip
LEAVES = [log.entry("policy"), log.canonical_json(LOT), log.entry("qualification")]


def test_what_is_said_of_a_record() -> None:
    assert verdict_of(RECORD) == "QUALIFIED"
    assert sentence_of(RECORD) == (
        "It certifies that remix qualified, until 2026-07-30, by lot number 3 for this method and these data. "
        "All 2 of 2."
    )
    failed = {**RECORD, "passed": False, "statement": "1 of 2."}
    assert verdict_of(failed) == "NOT QUALIFIED"
    assert sentence_of(failed) == (
        "It certifies that remix did not qualify, by lot number 3 for this method and these data. 1 of 2."
    )


@pytest.mark.parametrize("passed", [1, "yes", None])
def test_only_true_is_a_pass(passed: Any) -> None:
    assert verdict_of({**RECORD, "passed": passed}) == "NOT QUALIFIED"


def test_the_lot_is_that_of_the_log() -> None:
    assert matches(LOT, RECORD)
    assert drew_lot(RECORD, 2, LEAVES) is True
    assert drew_lot(RECORD, 2, [leaf.decode() for leaf in LEAVES]) is True
    assert drew_lot(RECORD, 2, None) is None


@pytest.mark.parametrize("name", sorted(LOT))
def test_a_lot_that_differs_in_anything_is_another_one(name: str) -> None:
    assert not matches({**LOT, name: "other"}, RECORD)
    assert not matches({key: value for key, value in LOT.items() if key != name}, RECORD)


def test_a_lot_of_other_canaries_is_another_one() -> None:
    lot, record = {**LOT, "n_canaries": 4}, {**RECORD, "canaries": {"n_canaries": 4}}
    assert matches(lot, record)
    assert matches({**LOT, "n_canaries": 0}, {**RECORD, "canaries": None})
    assert not matches(lot, RECORD)
    assert not matches(LOT, record)
    assert not matches({**LOT, "n_canaries": 2}, record)


def test_an_old_record_says_that_relearning_and_canaries_were_not_measured() -> None:
    assert remarks(RECORD)[:2] == ("Relearning was not measured.", "No canaries were planted.")
    old = [{"commitment": "a", "figures": {"cost_share": 0.1}}, {"commitment": "b", "figures": None}]
    assert remarks({**RECORD, "probes": old})[0] == "Relearning was not measured."


def test_what_is_said_of_relearning_and_canaries() -> None:
    figures = [
        {"figures": {"relearning": {"n_runs": 24, "n_told_apart": k, "detection_p": p}}}
        for k, p in ((3, 0.2), (5, 0.01))
    ]
    counts = {"nothing": {"n": 16, "n_rejected": 15}, "retrained": {"n": 16, "n_rejected": 1}}
    canaries = {"n_canaries": 4, **counts, "methods": {"remix": {"n": 32, "n_rejected": 9}}}
    assert remarks({**RECORD, "probes": [*figures, {"figures": None}], "canaries": canaries})[:2] == (
        "Relearning: taught half of the images again, 8 of 48 runs came back on the others faster than retrained "
        "models do; on 1 of 2 probe subjects the runs together were told from retrained models.",
        "Canaries: of 4 planted subjects the gate rejects 15 of 16 models that forgot nothing, 1 of 16 retrained "
        "models, 9 of 32 runs of remix.",
    )


@pytest.mark.parametrize("index", [0, 1])
def test_a_lot_drawn_after_its_record_is_none(index: int) -> None:
    assert drew_lot(RECORD, index, LEAVES) is False


@pytest.mark.parametrize(
    "leaves", [[], LEAVES[:1], [LEAVES[0], b"[]"], [LEAVES[0], b"no JSON"], [LEAVES[0], b'{"kind":1,"kind":1}']]
)
def test_without_the_entry_there_is_no_lot(leaves: list[bytes]) -> None:
    assert drew_lot(RECORD, 2, leaves) is False


@pytest.mark.parametrize("place", [-1, 7])
def test_a_place_outside_of_the_log(place: int) -> None:
    assert drew_lot({**RECORD, "lot": {"number": 3, "log_index": place}}, 2, LEAVES) is False


def test_the_entry_names_the_envelope_and_nothing_else() -> None:
    envelope = {"payload": "e30=", "payloadType": "t", "signatures": []}
    assert set(log.parse_json(log_entry(envelope))) == {"kind", "envelope_sha256"}
