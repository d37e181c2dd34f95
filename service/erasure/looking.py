"""What an audit asks of a candidate besides its margins on the forget set: features, and everybody else's margins.

Both are forward passes of the candidate alone, in the process that makes it: on the retained subjects whose margins the
references kept, and on the forget set in every view. Nothing is trained for them. What was seen is kept in the run's
folder, which is destroyed with the run. Where the references, or the originals, were made before features were kept,
nothing is looked at and the audit says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from audit.statistics.looks import CandidateLooks
from service.banks.build import example_ids
from service.banks.looks import descriptors_beside, others_beside
from service.banks.store import Bank, BankStore
from service.erasure.references import bank_plan, originals
from service.erasure.workspace import Workspace
from service.training.looks import Looks
from service.training.spec import Rows

OLD_REFERENCES = "the reference models were trained before features and retained subjects were looked at"
NO_ORIGINALS = "there are no models trained with everybody of which features were kept"
NOT_SEEN = "the audited model was made before these reference models were, and not looked at beside them"
NO_LAYER = "the audited model has no linear layer that gives its answers, or gives answers that are not numbers"


def to_json(looks: Looks | None, sample: Rows | None) -> dict[str, Any] | None:
    """Plain JSON values of what was seen of a candidate beside a sample; None if it was not looked at."""
    if sample is None:
        return None
    seen = {"sample": sample.tolist(), "descriptors": None, "others": None}
    if looks is not None:
        descriptors = None if looks.descriptors is None else looks.descriptors.tolist()
        seen |= {"descriptors": descriptors, "others": looks.others.tolist()}
    return seen


def looks_of(work: Workspace, seen: Mapping[str, Any] | None, bank: Bank) -> CandidateLooks:
    """What was seen of a candidate, beside the same of the models that it is compared with.

    Args:
        seen: as `to_json` gives it.
        bank: the references.
    """
    sample, kept = bank_plan(work).sample, others_beside(_store(work), bank, len(bank.seeds))
    if sample is None or kept is None:
        return CandidateLooks(features_lacking=OLD_REFERENCES, others_lacking=OLD_REFERENCES)
    if seen is None or seen["sample"] != sample.tolist():
        return CandidateLooks(features_lacking=NOT_SEEN, others_lacking=NOT_SEEN)
    if seen["others"] is None:
        return CandidateLooks(features_lacking=NO_LAYER, others_lacking=NO_LAYER)
    store, ids, known = _store(work), example_ids(work.faces, work.plan.forget), originals(work)
    references = descriptors_beside(store, bank, len(bank.seeds), ids)
    of_originals = None if known is None else descriptors_beside(store, known, len(known.seeds), ids)
    place = {tag: i for i, tag in enumerate(bank_plan(work).others)}
    mine = [place[tag] for tag in kept[0] if tag in place]  # whoever was erased since is no longer of the sample
    theirs = [tag in place for tag in kept[0]]
    if not mine:  # few subjects with many images: the references looked at one who is to be erased
        return CandidateLooks(features_lacking=NOT_SEEN, others_lacking=NOT_SEEN)
    lacking = ""
    if seen["descriptors"] is None:
        lacking = NO_LAYER
    elif references is None:
        lacking = OLD_REFERENCES
    elif of_originals is None:
        lacking = NO_ORIGINALS
    return CandidateLooks(
        candidate=None if lacking else np.array(seen["descriptors"]),
        references=references,
        originals=of_originals,
        others=np.array(seen["others"])[mine],
        others_references=kept[1][:, theirs],
        features_lacking=lacking,
    )


def _store(work: Workspace) -> BankStore:
    return BankStore(work.context.settings.banks_folder)
