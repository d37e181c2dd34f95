"""What an audit asks of a candidate besides its margins on the forget set: features, and everybody else's margins.

Both are forward passes of the candidate alone, on the retained subjects whose margins the references kept and on the
forget set in every view; nothing is trained for them. What was seen is kept in the run's folder, which is destroyed
with the run. Where the references, or the originals, were made before features were kept, nothing is looked at and the
audit says why.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from audit.statistics.looks import CandidateLooks
from service.banks.build import example_ids
from service.banks.looks import descriptors_beside, others_beside
from service.banks.store import Bank, BankStore
from service.erasure.candidates import outcome_of, spec_of, where_for
from service.erasure.references import bank_plan, originals
from service.erasure.workspace import Workspace
from service.training.jobs import in_children
from service.training.looks import look
from service.training.spec import TrialSpec, intact, subjects_of
from unlearning.models import load_weights
from unlearning.training import fresh_model

log = structlog.get_logger()

OLD_REFERENCES = "the reference models were trained before features and retained subjects were looked at"
BY_POLICY = "the policy asks for margins on the forget set only"
NO_ORIGINALS = "there are no models trained with everybody of which features were kept"
NO_LAYER = "the audited model has no linear layer that gives its answers, or gives answers that are not numbers"


def looks_of(work: Workspace, step: int, method: str, bank: Bank) -> CandidateLooks:
    """What is seen of the step's candidate, and of the models that it is compared with.

    The candidate is looked at unless that is recorded, or the references have nothing beside them.

    Raises:
        DataChangedError: somebody was erased meanwhile.
    """
    if work.policy.margins_only:
        return CandidateLooks(features_lacking=BY_POLICY, others_lacking=BY_POLICY)
    store, n = BankStore(work.context.settings.banks_folder), len(bank.seeds)
    plan, kept = bank_plan(work), others_beside(store, bank, n)
    if plan.sample is None or kept is None:
        return CandidateLooks(features_lacking=OLD_REFERENCES, others_lacking=OLD_REFERENCES)
    place = {tag: i for i, tag in enumerate(kept[0])}
    people = subjects_of(work.faces, plan.sample)
    shared = [(person, place[tag]) for person, tag in zip(people, plan.others, strict=True) if tag in place]
    sample = plan.sample[np.isin(work.faces.subject_of[plan.sample], [person for person, _ in shared])]
    seen = _seen(work, step, method, sample) if shared else None
    ids, known = example_ids(work.faces, work.plan.forget), originals(work)
    references = descriptors_beside(store, bank, n, ids)
    of_originals = None if known is None else descriptors_beside(store, known, len(known.seeds), ids)
    if seen is None:
        return CandidateLooks(features_lacking=NO_LAYER, others_lacking=NO_LAYER)
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
        others=np.array(seen["others"]),
        others_references=kept[1][:, [column for _, column in shared]],
        features_lacking=lacking,
    )


def _seen(work: Workspace, step: int, method: str, sample: NDArray[np.int64]) -> dict[str, Any] | None:
    """What is recorded of the candidate beside this sample; made and recorded now if nothing is.

    None: its answers are no numbers.
    """
    outcome, folder = outcome_of(work, step), work.folder
    if outcome.get("seen", {}).get("sample") != sample.tolist():
        call = (replace(spec_of(work, method), sample=sample), folder.weights(step), outcome["weights_digest"])
        settings = where_for(work, method).model_copy(update={"cluster": ""})
        (found,) = in_children(_look, [call], settings)
        log.info("audit.looked", step=step, processor_seconds=found.pop("processor_seconds"))
        outcome["seen"] = {**found, "sample": sample.tolist()}
        folder.write(f"step-{step}", outcome)
    seen: dict[str, Any] = outcome["seen"]
    return seen if "others" in seen else None


def _look(spec: TrialSpec, weights: Path, digest: str) -> dict[str, Any]:
    """In a child: descriptors and retained subjects' T of the model of a weights file, and the processor's seconds."""
    started = time.process_time()
    with intact(spec.images) as faces:
        model = fresh_model(spec.recipe, len(faces.classes))
        load_weights(model, weights, digest=digest)
        looks = look(spec, model)
    found: dict[str, Any] = {"processor_seconds": time.process_time() - started}
    if looks is None:
        return found
    descriptors = None if looks.descriptors is None else looks.descriptors.tolist()
    return found | {"descriptors": descriptors, "others": looks.others.tolist()}
