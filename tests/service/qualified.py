"""Qualifications as `service.studies.qualification` writes them, without a model trained."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from audit.policy import PRESETS
from audit.proof.qualification import LOT_KIND
from audit.qualification import Bars
from service.banks.qualifications import Identity, sign_record
from service.context import Context
from service.keys.keyring import commitment
from service.store import ledger
from service.store.engine import session
from service.store.tables import Qualification
from unlearning.methods import settings_for
from unlearning.recipes import RECIPES, Recipe

SUBJECTS = ("ada", "ben", "cyd")
N_SUBJECTS = 40
BARS = Bars.of(PRESETS["standard"])


FIGURES = {"cost_share": 0.1, "rejected": {"n_runs": 24, "n_rejected": 6}}
"""Of each probe subject: a run costs a tenth of a training, and three of four pass the gate."""


def write_qualification(
    context: Context,
    *,
    passed: bool | None = True,
    method: str = "remix",
    recipe: Recipe = RECIPES["att_small"],
    bars: Bars = BARS,
    n_subjects: int = N_SUBJECTS,
    **changes: Any,
) -> str:
    """Write one of a method with its settings in force, finished unless `passed` is None; gives its id.

    Args:
        changes: columns of the row, and with them of its record, that are to be other ones.
    """
    identity = Identity.of(method, settings_for(method, recipe).to_dict(), recipe)
    fields: dict[str, Any] = {
        "settings_digest": identity.settings_digest, "recipe_digest": identity.recipe_digest,
        "method_code": identity.method_code, "training_code": identity.training_code, **changes,
    }  # fmt: skip
    with session(context.engine) as s:
        probes = [
            {"commitment": commitment(b"salt", who), "salt": b"salt".hex(), "tag": context.keyring.block_hash(who)}
            for who in SUBJECTS
        ]
        committed = [probe["commitment"] for probe in probes]
        fixed: dict[str, Any] = {
            "method": method, "settings_digest": fields["settings_digest"], "method_code": fields["method_code"],
            "training_code": fields["training_code"], "data_digest": "d", "bars": bars.to_dict(),
            "n_subjects": n_subjects, "n_drawn_from": n_subjects, "n_references": 24, "n_runs": 24,
        }  # fmt: skip
        lot = ledger.record(
            s, LOT_KIND, now=context.now(), probes=committed, lot_number=1, recipe_digest=fields["recipe_digest"],
            policy_digest="p", **fixed,
        )  # fmt: skip
        row = Qualification(
            id=context.new_id(), method=method, data_digest="d", bars=bars.to_dict(), n_subjects=n_subjects,
            n_drawn_from=n_subjects, lot_number=1, n_references=24, n_runs=24, n_probes=3, probes=probes,
            lot_log_index=lot, created_at=context.now(), passed=passed, **fields,
        )  # fmt: skip
        s.add(row)
        if passed is not None:
            row.finished_at = context.now()
            row.expires_at = context.now() + timedelta(days=180)
            sign_record(context, s, row, {
                **fixed, "recipe": {"digest": row.recipe_digest}, "policy": {"digest": "p"},
                "lot": {"number": 1, "log_index": lot}, "probes": [
                    {"commitment": each, "figures": FIGURES} for each in committed
                ],
                "passed": passed, "statement": "All 3 of 3." if passed else "2 of 3.",
                "reasons": [] if passed else ["Probe 2: it did not."], "expires_at": row.expires_at.isoformat(),
            })  # fmt: skip
        s.commit()
    return row.id
