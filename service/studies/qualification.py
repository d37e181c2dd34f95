"""`expunge qualify`: are methods any good on this home's data? The answer, ahead of all requests.

The steps of a method's qualification:

1. **The lot.** Subjects of the training split are ordered by a keyed hash of subject, data and lot number, and the
   first K are the probes: whoever lacks `block.key` cannot tell who they will be, and whoever has it cannot choose.
   Left out are those whose erasure waits and those whom the method's settings were tuned on. The lot is logged before
   any model is made, with a commitment to each probe subject and all that is fixed now: settings, code, data, bars,
   numbers.
2. **The self-test.** Planted subjects, whose answer is known (`service.studies.canaries`). If the gate does not see
   them no method can be judged, and nothing more is made.
3. **Models.** For each probe subject N models trained without them, and M runs of the method from one original that
   learned from everybody; all methods and probes share the original, and methods with the same probes the references.
   Of each model there are also margins after it learned a little of the subject again (`unlearning.relearning`).
   They lie in `evaluations/`, so a command that was killed goes on where it was.
4. **The verdict** (`audit.qualification`), signed, logged and stored (`service.banks.qualifications`).

A lot without a result is taken up again by whoever asks for the same; anything else, also another number of models, is
another lot, whose number tells that there was one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.canaries import Canaries
from audit.errors import BankError
from audit.policy import Policy
from audit.proof.statement import json_ready
from audit.qualification import (
    Bars,
    Probe,
    ProbeEvidence,
    Qualification,
    conclude,
    diverged,
    judge_probe,
    unjudged,
)
from audit.studies.comparison import DO_NOTHING
from service.banks import qualifications
from service.banks.build import views_of
from service.banks.file_format import RELEARNED
from service.banks.qualifications import count_subjects, is_due
from service.banks.store import Bank
from service.context import Context
from service.errors import ConflictError, DataChangedError, InvalidInputError
from service.store import tables
from service.store.engine import session
from service.studies import canaries as canary_study
from service.studies.canaries import Planted, plant
from service.studies.experiments import Experiment, draw_oracles, draw_references, draw_together, store_of
from service.studies.forget_setup import Stage, Task, set_stage
from service.studies.looks import gathered, originals_of
from service.studies.lots import FEWEST_PROBES, Asked, Lot, identity_of, take_lot, tuned_on
from service.studies.prices import Price, n_oracles_of, price_of
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.production import made_with
from service.training.spec import intact, open_images
from unlearning import relearning
from unlearning.faces.views import VIEWS
from unlearning.methods import find_method, settings_for

OnStep = Callable[[str, int, int], None]
"""Called with (what is being done, models or probes done, models or probes wanted)."""


@dataclass(frozen=True)
class Prepared:
    """Lots that are logged, and everything that their models have in common."""

    asked: Asked
    lots: tuple[Lot, ...]
    stages: dict[str, Stage]
    price: Price
    planted: Planted | None = None


@dataclass(frozen=True)
class Result:
    """A method's result, as it was signed."""

    lot: Lot
    qualification: Qualification
    record: dict[str, Any]
    log_index: int


def prepare(context: Context, asked: Asked) -> Prepared:
    """Draw and log the lots, or take up those that wait for their result; nothing is trained.

    Raises:
        InvalidInputError: too few subjects.
        PoorModelError: the model in service answers one class only.
        FacesError: the data folder breaks a rule.
    """
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    faces = open_images(images)
    absent = asked_to_go(context, faces)
    present = sorted(set(faces.train_subjects()) - absent)
    allowed = set(present) - tuned_on(context, recipe, asked.methods, present)
    if len(allowed) < FEWEST_PROBES:
        raise InvalidInputError(
            f"Expected at least {FEWEST_PROBES} subjects of the training split whom nobody tuned on and whose erasure "
            f"does not wait, got {len(allowed)}: so few show nothing."
        )
    set_stage(context, sorted(allowed)[:1])  # whatever forbids a stage is said before a lot is drawn
    with session(context.engine) as s:
        lots = tuple(
            take_lot(context, s, asked, identity_of(context, method, recipe), present, allowed, images.manifest_digest)
            for method in asked.methods
        )
        s.commit()
    stages = {person: _stage(context, person) for person in sorted({p for lot in lots for p in lot.people})}
    planted = plant(next(iter(stages.values())), asked.n_canaries) if asked.n_canaries else None
    return Prepared(asked, lots, stages, price_of(context, asked, lots, stages, planted), planted)


def due(context: Context, policy: Policy) -> tuple[str, ...]:
    """Methods of the policy's ladder that the idle worker is to qualify; none where the policy asks for none.

    Raises:
        FacesError: the data folder's table cannot be read.
    """
    if not policy.qualification:
        return ()
    recipe, n_subjects = recipe_of(context), count_subjects(context)
    return tuple(
        name
        for name in policy.ladder
        if not find_method(name).exact
        and is_due(
            context, method=name, options=settings_for(name, recipe, context.settings.tuned).to_dict(), recipe=recipe,
            n_subjects_now=n_subjects, bars=Bars.of(policy),
        )
    )  # fmt: skip


def qualify(
    context: Context, prepared: Prepared, *, on_step: OnStep = lambda doing, done, wanted: None
) -> list[Result]:
    """Make the models that are missing, judge every method, and sign, log and store the results.

    Raises:
        DataChangedError: somebody was erased meanwhile; prepare again, with the data as they are.
    """
    asked, stages = prepared.asked, prepared.stages
    lost: dict[tuple[str, str], str] = {}
    with intact(next(iter(stages.values())).plan.spec.images):
        canaries = _self_test(context, prepared, on_step)
        if canaries is not None and canaries.objection:
            return [_finish(context, prepared, lot, _blind(prepared, lot, canaries), {}) for lot in prepared.lots]
        references = _draw_references(context, prepared, on_step)
        _draw_oracles(context, prepared, on_step)
        person_of = {stage: person for person, stage in stages.items()}

        def note(task: Task, reason: str) -> None:
            lost.setdefault((task.method, person_of[task.stage]), reason)

        wanted = [(_experiment(prepared, person), stage) for person, stage in stages.items()]
        wanted += [(originals_of(person), stage) for person, stage in stages.items()]
        drawn = draw_together(context, wanted, _named("runs of methods", on_step), on_failure=note)
        runs = dict(zip(stages, drawn, strict=False))
        originals = dict(zip(stages, drawn[len(stages) :], strict=True))
        results = []
        for lot in prepared.lots:
            probes = []
            for number, person in enumerate(lot.people, 1):
                on_step(f"figures of {lot.method}", number - 1, len(lot.people))
                said = lost.get((lot.method, person))
                probes.append(
                    diverged(said) if said is not None
                    else _judge(
                        context, asked, lot, number, stages[person], references[person], runs[person],
                        originals[person][DO_NOTHING],
                    )
                )  # fmt: skip
            on_step(f"figures of {lot.method}", len(lot.people), len(lot.people))
            mine = None if canaries is None else canaries.of(lot.method)
            result = conclude(probes, Bars.of(asked.policy), canaries=mine)
            results.append(_finish(context, prepared, lot, result, references))
    return results


def _self_test(context: Context, prepared: Prepared, on_step: OnStep) -> Canaries | None:
    """What the gate says of planted subjects, before anything else is paid for."""
    planted = prepared.planted
    if planted is None:
        return None
    return canary_study.judge(context, planted, prepared.asked.methods, _named("canaries", on_step))


def _blind(prepared: Prepared, lot: Lot, canaries: Canaries) -> Qualification:
    """The verdict where no method can be judged."""
    return conclude(
        [unjudged(canaries)] * len(lot.people), Bars.of(prepared.asked.policy), canaries=canaries.of(lot.method)
    )


def _draw_references(context: Context, prepared: Prepared, on_step: OnStep) -> dict[str, Bank]:
    """By probe subject, the models trained without them."""
    n = prepared.asked.n_references
    banks: dict[str, Bank] = {}
    wanted = n * len(prepared.stages)
    for number, (person, stage) in enumerate(prepared.stages.items()):

        def report(done: int, _: int, before: int = number * n) -> None:
            on_step("retrained models", before + min(done, n), wanted)

        banks[person] = draw_references(context, stage, n, report)
    return banks


def _draw_oracles(context: Context, prepared: Prepared, on_step: OnStep) -> None:
    """Those that the methods read; the runs find them."""
    wanted = {person: n_oracles_of(context, prepared.lots, person, stage) for person, stage in prepared.stages.items()}
    done_before, together = 0, sum(wanted.values())
    for person, n in wanted.items():
        if not n:
            continue

        def report(done: int, _: int, before: int = done_before, n: int = n) -> None:
            on_step("oracles", before + min(done, n), together)

        draw_oracles(context, prepared.stages[person], n, report)
        done_before += n


def _experiment(prepared: Prepared, person: str) -> Experiment:
    methods = tuple(lot.method for lot in prepared.lots if person in lot.people)
    return Experiment(methods, (person,), "reuse_n_1", n_models=prepared.asked.n_runs)


def _judge(  # noqa: PLR0917
    context: Context, asked: Asked, lot: Lot, number: int, stage: Stage, references: Bank, runs: dict[str, Bank],
    originals: Bank,
) -> Probe:  # fmt: skip
    mine, ids, n, m = runs[lot.method], stage.plan.example_ids, asked.n_references, asked.n_runs
    try:
        whole = [views_of(bank, ids)[:k] for bank, k in ((mine, m), (references, n), (runs[DO_NOTHING], 1))]
        views = [bank[:, : len(VIEWS)] for bank in whole]
        evidence = ProbeEvidence(
            references=views[1],
            runs=views[0],
            retain_accuracy_references=references.retain_accuracy[:n],
            retain_accuracy_runs=mine.retain_accuracy[:m],
            test_accuracy_references=references.test_accuracy[:n],
            test_accuracy_runs=mine.test_accuracy[:m],
            seconds_references=references.seconds[:n],
            seconds_runs=mine.seconds[:m],
            originals=views[2],  # one: all rows are of one original
            curves=(_curves(whole[0]), _curves(whole[1]), _curves(whole[2])) if len(ids) > 1 else None,
            relearned=relearning.halves(len(ids))[0],
            looks=gathered(store_of(context, stage), references, mine, originals, n_references=n, n_runs=m),
        )
    except BankError as error:
        return diverged(f"The models of {lot.method} cannot be judged: {error}")
    return judge_probe(evidence, Bars.of(asked.policy), seed=int(lot.commitments[number - 1][:16], 16))


def _stage(context: Context, person: str) -> Stage:
    """The stage of a probe subject, whose models learn a little of it again as well."""
    stage = set_stage(context, [person], with_looks=True)
    return replace(stage, plan=replace(stage.plan, key=replace(stage.plan.key, statistic=RELEARNED)))


def _curves(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """From a bank's margins those as the models stand and after each step, `(n_models, STEPS + 1, n_images)`."""
    return np.concatenate([margins[:, :1], margins[:, len(VIEWS) :]], axis=1)


def _finish(
    context: Context, prepared: Prepared, lot: Lot, result: Qualification, references: dict[str, Bank]
) -> Result:
    """Sign, log and store a result; of two processes that reach one the first has written it."""
    asked, now = prepared.asked, context.now()
    recipe = next(iter(prepared.stages.values())).plan.spec.recipe
    with session(context.engine) as s:
        row = s.get_one(tables.Qualification, lot.id)
        if row.passed is None:
            if [probe["commitment"] for probe in row.probes] != list(lot.commitments):
                raise DataChangedError  # a probe subject was erased
            if identity_of(context, lot.method, recipe) != lot.identity:
                raise ConflictError(
                    f"Expected the settings of {lot.method} to stay as they were when the lot was drawn, but they "
                    "changed meanwhile; qualify again."
                )
            expires_at = now + timedelta(days=context.settings.qualification_days)
            shown = [
                {"number": number, "commitment": kept["commitment"], **json_ready(probe)}
                for number, (kept, probe) in enumerate(zip(row.probes, result.probes, strict=True), 1)
            ]
            row.passed, row.finished_at, row.expires_at = result.qualified, now, expires_at
            row.reason = "" if result.qualified else " ".join((result.statement, *result.reasons[:1]))
            row.probes = [{**kept, "figures": probe} for kept, probe in zip(row.probes, shown, strict=True)]
            qualifications.sign_record(context, s, row, {
                "method": lot.method,
                "settings": settings_for(lot.method, recipe, context.settings.tuned).to_dict(),
                "settings_digest": row.settings_digest,
                "recipe": {"name": recipe.name, "digest": recipe.digest},
                "method_code": row.method_code,
                "training_code": row.training_code,
                "data_digest": row.data_digest,
                "n_subjects": row.n_subjects,
                "n_drawn_from": row.n_drawn_from,
                "policy": {"name": asked.policy.name, "digest": asked.policy.digest},
                "bars": row.bars,
                "lot": {
                    "number": row.lot_number, "log_index": row.lot_log_index, "drawn_at": json_ready(row.created_at),
                },
                "n_references": row.n_references,
                "n_runs": row.n_runs,
                "views": list(VIEWS),
                "probes": shown,
                "passed": result.qualified,
                "n_passed": result.n_passed,
                "share": result.share,
                "confidence": result.confidence,
                "statement": result.statement,
                "reasons": list(result.reasons),
                "relearning": relearning.settings(),
                "canaries": _canaries(prepared, result),
                "training_seconds": float(
                    np.median(np.concatenate([references[person].seconds[: row.n_references] for person in lot.people]))
                ) if references else None,
                "made_with": made_with(context),
                "issued_at": json_ready(now),
                "expires_at": json_ready(expires_at),
            })  # fmt: skip
            s.commit()
        record, index = row.record or {}, int(row.log_index or 0)
    return Result(lot, result, record, index)


def _canaries(prepared: Prepared, result: Qualification) -> dict[str, Any] | None:
    """What the record says of planted subjects."""
    if prepared.planted is None or result.canaries is None:
        return None
    shown: dict[str, Any] = json_ready(result.canaries)
    return {**shown, "digest": prepared.planted.digest, "objection": result.canaries.objection}


def _named(doing: str, on_step: OnStep) -> Callable[[int, int], None]:
    return lambda done, wanted: on_step(doing, done, wanted)
