"""`expunge qualify`: are methods any good on this home's data? The answer, ahead of all requests.

The steps of a method's qualification:

1. **The lot.** Subjects of the training split are ordered by a keyed hash of subject, data and lot number, and the
   first K are the probes: whoever lacks `block.key` cannot tell who they will be, and whoever has it cannot choose.
   Left out are those whose erasure waits and those whom the method's settings were tuned on. The lot is logged before
   any model is made, with a commitment to each probe subject and all that is fixed now: settings, code, data, bars,
   numbers.
2. **Models.** For each probe subject N models trained without them, and M runs of the method from one original that
   learned from everybody; all methods and probes share the original, and methods with the same probes the references.
   They lie in `evaluations/`, so a command that was killed goes on where it was.
3. **The verdict** (`audit.qualification`), signed, logged and stored (`service.banks.qualifications`).

A lot without a result is taken up again by whoever asks for the same; anything else, also another number of models, is
another lot, whose number tells that there was one before.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from sqlmodel import Session, col, select

from audit.errors import BankError
from audit.policy import Policy
from audit.proof.qualification import LOT_KIND
from audit.proof.statement import json_ready
from audit.qualification import (
    FEWEST_MODELS,
    Bars,
    Probe,
    ProbeEvidence,
    Qualification,
    conclude,
    diverged,
    judge_probe,
)
from audit.studies.comparison import DO_NOTHING
from service.banks import qualifications
from service.banks.build import views_of
from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
from service.banks.oracles import n_wanted, oracle_plan
from service.banks.qualifications import Identity
from service.banks.store import Bank, BankStore
from service.context import Context
from service.errors import ConflictError, DataChangedError, InvalidInputError
from service.keys.keyring import commitment
from service.store import ledger, tables
from service.store.engine import reading, session
from service.store.tables import TunedSubject
from service.studies.experiments import (
    Experiment,
    bank_keys,
    draw_oracles,
    draw_references,
    draw_together,
    store_of,
)
from service.studies.forget_setup import Stage, Task, set_stage
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.production import made_with
from service.training.spec import intact, open_images
from unlearning.faces.views import VIEWS
from unlearning.methods import find_method, settings_for, tuned_record
from unlearning.recipes import Recipe

N_PROBES, N_MODELS = 8, 24
FEWEST_PROBES = 3
"""Of two probe subjects that both passed one would know no more than that one subject in five would."""

OnStep = Callable[[str, int, int], None]
"""Called with (what is being done, models or probes done, models or probes wanted)."""


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        methods: to qualify, each for itself.
        n_probes: probe subjects, fewer if there are not so many.
        n_references: models trained without each probe subject.
        n_runs: runs of each method on each probe subject.

    Raises:
        MethodError: an unknown method.
        InvalidInputError: no method, an exact one, or a number out of range.
    """

    methods: tuple[str, ...]
    policy: Policy
    n_probes: int = N_PROBES
    n_references: int = N_MODELS
    n_runs: int = N_MODELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        if exact := [name for name in self.methods if find_method(name).exact]:
            raise InvalidInputError(f"Expected approximate methods; {', '.join(exact)} is exact and needs no proof.")
        if not self.methods:
            raise InvalidInputError("Expected at least one method to qualify.")
        if self.n_probes < FEWEST_PROBES or min(self.n_references, self.n_runs) < FEWEST_MODELS:
            raise InvalidInputError(
                f"Expected at least {FEWEST_PROBES} probe subjects, and {FEWEST_MODELS} references and runs of each, "
                f"which F / F_null and the gate need; got {self.n_probes}, {self.n_references} and {self.n_runs}."
            )

    @property
    def reading_oracles(self) -> tuple[str, ...]:
        """Methods that need further trainings for each probe subject; how many is in their settings."""
        return tuple(name for name in self.methods if find_method(name).needs_oracles)

    @property
    def most_trainings(self) -> float:
        """What it costs at most in trainings, oracles not counted, if no run costs more than the policy's bar."""
        runs = len(self.methods) * self.n_probes * self.n_runs
        return self.n_probes * self.n_references + 1 + runs * self.policy.cost_share_max


@dataclass(frozen=True)
class Lot:
    """A method's lot of probe subjects, logged.

    Attributes:
        id: of its row.
        people: user ids, in the order of the commitments, which is that of chance.
        commitments: of each, as logged.
        number: among the lots for this method and these data, from 1.
        n_subjects: of the training split when it was drawn.
        n_drawn_from: of these, without those whom the settings were tuned on.
        is_new: drawn now, not taken up again.
    """

    id: str
    identity: Identity
    people: tuple[str, ...]
    commitments: tuple[str, ...]
    number: int
    n_subjects: int
    n_drawn_from: int
    is_new: bool

    @property
    def method(self) -> str:
        """Whose lot it is."""
        return self.identity.method


@dataclass(frozen=True)
class Price:
    """What is still to be trained and run.

    Attributes:
        n_trainings: references, originals and oracles.
        n_runs: of methods.
        runs_worth: what the runs cost, in trainings; of a method that was never tuned the policy's bar is taken.
        n_there: models that are here already.
        training_seconds: processor seconds of one training, if any was made here before.
    """

    n_trainings: int
    n_runs: int
    runs_worth: float
    n_there: int
    training_seconds: float | None

    def sentence(self) -> str:
        """The price, before it is paid."""
        if not self.n_trainings and not self.n_runs:
            return f"All {self.n_there} models are here already."
        whole = self.n_trainings + self.runs_worth
        models = "1 model" if self.n_trainings == 1 else f"{self.n_trainings} models"
        sentence = f"{models} to train and {self.n_runs} runs of methods, together about {whole:.0f} trainings"
        if self.training_seconds is not None:
            seconds = whole * self.training_seconds
            time = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
            sentence += f", {time if seconds >= 60 else 'less than a minute'} of one core"
        return sentence + (f"; {self.n_there} models are here already." if self.n_there else ".")


@dataclass(frozen=True)
class Prepared:
    """Lots that are logged, and everything that their models have in common."""

    asked: Asked
    lots: tuple[Lot, ...]
    stages: dict[str, Stage]
    price: Price


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
    allowed = set(present) - _tuned_on(context, recipe, asked.methods, present)
    if len(allowed) < FEWEST_PROBES:
        raise InvalidInputError(
            f"Expected at least {FEWEST_PROBES} subjects of the training split whom nobody tuned on and whose erasure "
            f"does not wait, got {len(allowed)}: so few show nothing."
        )
    set_stage(context, sorted(allowed)[:1])  # whatever forbids a stage is said before a lot is drawn
    with session(context.engine) as s:
        lots = tuple(
            _lot(context, s, asked, _identity(context, method, recipe), present, allowed, images.manifest_digest)
            for method in asked.methods
        )
        s.commit()
    stages = {person: set_stage(context, [person]) for person in sorted({p for lot in lots for p in lot.people})}
    return Prepared(asked, lots, stages, price_of(context, asked, lots, stages))


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
        references = _draw_references(context, prepared, on_step)
        _draw_oracles(context, prepared, on_step)
        person_of = {stage: person for person, stage in stages.items()}

        def note(task: Task, reason: str) -> None:
            lost.setdefault((task.method, person_of[task.stage]), reason)

        wanted = [(_experiment(prepared, person), stage) for person, stage in stages.items()]
        drawn = draw_together(context, wanted, _named("runs of methods", on_step), on_failure=note)
        runs = dict(zip(stages, drawn, strict=True))
        results = []
        for lot in prepared.lots:
            probes = []
            for number, person in enumerate(lot.people, 1):
                on_step(f"figures of {lot.method}", number - 1, len(lot.people))
                said = lost.get((lot.method, person))
                probes.append(
                    diverged(said) if said is not None
                    else _judge(asked, lot, number, stages[person], references[person], runs[person])
                )  # fmt: skip
            on_step(f"figures of {lot.method}", len(lot.people), len(lot.people))
            result = conclude(probes, Bars.of(asked.policy))
            results.append(_finish(context, prepared, lot, result, references))
    return results


def _identity(context: Context, method: str, recipe: Recipe) -> Identity:
    return Identity.of(method, settings_for(method, recipe, context.settings.tuned).to_dict(), recipe)


def _tuned_on(context: Context, recipe: Recipe, methods: Sequence[str], people: Sequence[str]) -> set[str]:
    """Who must not be a probe of these methods: named in the record of their settings, or noted in the database."""
    named: set[str] = set()
    for method in methods:
        found = tuned_record(method, recipe, context.settings.tuned)
        named.update(person for people_of in (found or {}).get("record", {}).get("people", ()) for person in people_of)
    with reading(context.engine) as s:
        tags = set(
            s.exec(
                select(TunedSubject.tag).where(
                    TunedSubject.recipe_digest == recipe.digest, col(TunedSubject.method).in_(methods)
                )
            )
        )
    return {person for person in people if person in named or context.keyring.block_hash(person) in tags}


def _lot(  # noqa: PLR0917
    context: Context, s: Session, asked: Asked, identity: Identity, present: list[str], allowed: set[str], data: str
) -> Lot:
    """The lot that waits for a result if it is the one asked for; else a new one, logged."""
    bars, n_probes = Bars.of(asked.policy), min(asked.n_probes, len(allowed))
    earlier = s.exec(
        select(tables.Qualification)
        .where(tables.Qualification.method == identity.method, tables.Qualification.data_digest == data)
        .order_by(col(tables.Qualification.lot_number).desc())
    ).all()
    for row in earlier:
        by_tag = {context.keyring.block_hash(person): person for person in allowed}
        waits = row.passed is None and all(probe["tag"] in by_tag for probe in row.probes)
        numbers = (len(row.probes), row.n_probes, row.n_references, row.n_runs)
        same = numbers == (n_probes, n_probes, asked.n_references, asked.n_runs) and row.bars == bars.to_dict()
        if waits and same and Identity.of_row(row) == identity:
            people = tuple(by_tag[probe["tag"]] for probe in row.probes)
            return _as_lot(row, people, is_new=False)
    number = 1 + max((row.lot_number for row in earlier), default=0)
    drawn = draw_lot([(person, context.keyring.block_hash(person)) for person in allowed], data, number, n_probes)
    salted = [(secrets.token_bytes(16), person) for person in drawn]
    # sorted by chance: a place in the record says nothing of one in the lot
    committed = sorted((commitment(salt, person), salt.hex(), person) for salt, person in salted)
    now = context.now()
    index = ledger.record(
        s, LOT_KIND, now=now, method=identity.method, settings_digest=identity.settings_digest,
        recipe_digest=identity.recipe_digest, method_code=identity.method_code, training_code=identity.training_code,
        data_digest=data, policy_digest=asked.policy.digest, bars=bars.to_dict(), n_subjects=len(present),
        n_drawn_from=len(allowed), lot_number=number, n_references=asked.n_references, n_runs=asked.n_runs,
        probes=[each for each, _, _ in committed],
    )  # fmt: skip
    row = tables.Qualification(
        id=context.new_id(), method=identity.method, settings_digest=identity.settings_digest,
        recipe_digest=identity.recipe_digest, method_code=identity.method_code, training_code=identity.training_code,
        data_digest=data, bars=bars.to_dict(), n_subjects=len(present), n_drawn_from=len(allowed), lot_number=number,
        n_references=asked.n_references, n_runs=asked.n_runs, n_probes=n_probes,
        probes=[
            {"commitment": each, "salt": salt, "tag": context.keyring.block_hash(person)}
            for each, salt, person in committed
        ],
        lot_log_index=index, created_at=now,
    )  # fmt: skip
    s.add(row)
    s.flush()
    return _as_lot(row, tuple(person for _, _, person in committed), is_new=True)


def _as_lot(row: tables.Qualification, people: tuple[str, ...], *, is_new: bool) -> Lot:
    committed = tuple(probe["commitment"] for probe in row.probes)
    return Lot(
        row.id, Identity.of_row(row), people, committed, row.lot_number, row.n_subjects, row.n_drawn_from, is_new
    )


def draw_lot(tagged: Sequence[tuple[str, str]], data: str, number: int, n_probes: int) -> list[str]:
    """The first subjects in the order of a hash of data, lot number and keyed tag.

    Args:
        tagged: user ids with their `Keyring.block_hash`.
        data: digest of the data folder's manifest.
        number: of the lot; another number gives another order.
    """

    def place(pair: tuple[str, str]) -> str:
        return hashlib.sha256(f"{data}\n{number}\n{pair[1]}".encode()).hexdigest()

    return [person for person, _ in sorted(tagged, key=place)[:n_probes]]


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
    wanted = {person: _n_oracles(context, prepared.lots, person, stage) for person, stage in prepared.stages.items()}
    done_before, together = 0, sum(wanted.values())
    for person, n in wanted.items():
        if not n:
            continue

        def report(done: int, _: int, before: int = done_before, n: int = n) -> None:
            on_step("oracles", before + min(done, n), together)

        draw_oracles(context, prepared.stages[person], n, report)
        done_before += n


def _n_oracles(context: Context, lots: Sequence[Lot], person: str, stage: Stage) -> int:
    """Oracles that the methods with this probe subject read."""
    recipe, tuned = stage.plan.spec.recipe, context.settings.tuned
    methods = (lot.method for lot in lots if person in lot.people)
    return n_wanted({name: settings_for(name, recipe, tuned).to_dict() for name in methods})


def _experiment(prepared: Prepared, person: str) -> Experiment:
    methods = tuple(lot.method for lot in prepared.lots if person in lot.people)
    return Experiment(methods, (person,), "reuse_n_1", n_models=prepared.asked.n_runs)


def _judge(  # noqa: PLR0917
    asked: Asked, lot: Lot, number: int, stage: Stage, references: Bank, runs: dict[str, Bank]
) -> Probe:
    mine, ids, n, m = runs[lot.method], stage.plan.example_ids, asked.n_references, asked.n_runs
    try:
        evidence = ProbeEvidence(
            references=views_of(references, ids)[:n],
            runs=views_of(mine, ids)[:m],
            retain_accuracy_references=references.retain_accuracy[:n],
            retain_accuracy_runs=mine.retain_accuracy[:m],
            test_accuracy_references=references.test_accuracy[:n],
            test_accuracy_runs=mine.test_accuracy[:m],
            seconds_references=references.seconds[:n],
            seconds_runs=mine.seconds[:m],
            originals=views_of(runs[DO_NOTHING], ids)[:1],  # all its rows are of one original
        )
    except BankError as error:
        return diverged(f"The models of {lot.method} cannot be judged: {error}")
    return judge_probe(evidence, Bars.of(asked.policy), seed=int(lot.commitments[number - 1][:16], 16))


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
            if _identity(context, lot.method, recipe) != lot.identity:
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
                "training_seconds": float(
                    np.median(np.concatenate([references[person].seconds[: row.n_references] for person in lot.people]))
                ),
                "made_with": made_with(context),
                "issued_at": json_ready(now),
                "expires_at": json_ready(expires_at),
            })  # fmt: skip
            s.commit()
        record, index = row.record or {}, int(row.log_index or 0)
    return Result(lot, result, record, index)


def price_of(context: Context, asked: Asked, lots: Sequence[Lot], stages: dict[str, Stage]) -> Price:
    """What `qualify` would have to do now."""
    n_trainings = n_runs = n_there = 0
    worth, originals, known = 0.0, False, None
    for person, stage in stages.items():
        store, recipe = store_of(context, stage), stage.plan.spec.recipe
        missing = len(store.missing_seeds(stage.plan.key, asked.n_references))
        n_trainings, n_there = n_trainings + missing, n_there + asked.n_references - missing
        methods = tuple(lot.method for lot in lots if person in lot.people)
        experiment = Experiment(methods, (person,), "reuse_n_1", n_models=asked.n_runs)
        for name, key in bank_keys(context, stage, experiment).items():
            lacking = len(store.missing_seeds(key, asked.n_runs))
            originals = originals or lacking > 0
            if name == DO_NOTHING:
                continue
            n_runs, n_there = n_runs + lacking, n_there + asked.n_runs - lacking
            found = tuned_record(name, recipe, context.settings.tuned)
            share = found["record"].get("cost_share") if found else None
            worth += lacking * (asked.policy.cost_share_max if share is None else float(share))
        n_oracles = _n_oracles(context, lots, person, stage)
        n_trainings += len(store.missing_seeds(oracle_plan(stage.plan).key, n_oracles, first=FIRST_ORACLE))
        known = known or _training_seconds(context, store, stage)
    return Price(n_trainings + originals, n_runs, worth, n_there, known)


def _training_seconds(context: Context, store: BankStore, stage: Stage) -> float | None:
    """Of one training by the recipe, if any was made here before."""
    own = [status for status in store.status(now=context.now()) if status.key == stage.plan.key]
    ahead = BankStore(context.settings.banks_folder).status(now=context.now())
    known = own + [status for status in ahead if status.key.recipe_digest == stage.plan.key.recipe_digest]
    return next((status.cost_seconds / status.n_models for status in known if status.n_models), None)


def _named(doing: str, on_step: OnStep) -> Callable[[int, int], None]:
    return lambda done, wanted: on_step(doing, done, wanted)
