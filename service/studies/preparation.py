"""`expunge prepare`: which parts are worth their price, and who is tuned on. What the results recommend: `ladders`.

All prices are in *trainings*: processor time of one training by the recipe. Whether a part is done is decided by what
it costs at most, whether or not some of it is there already, so that a command that was stopped decides the same when
it is given again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from audit.policy import FROM_SPARE, Policy
from service.banks.oracles import n_wanted
from service.banks.qualifications import note_tuned
from service.context import Context
from service.errors import InvalidInputError
from service.store.engine import reading
from service.store.tables import TunedSubject
from service.studies import lots, tuning
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.spec import open_images
from unlearning.methods import settings_for, tuned_record
from unlearning.recipes import Recipe

N_TUNING, N_TRIALS, N_TUNING_MODELS = 3, 8, 16
"""Subjects tuned on, each a forget set of its own; settings tried; runs of a trial on each subject."""
REFERENCES, SPARES, TUNE, QUALIFY = PARTS = ("references", "spares", "tune", "qualify")


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        methods: candidates; none: the approximate ones of the policy's ladder, where they can pay.
        n_probes, n_models, n_canaries: of the qualification, see `service.studies.lots.Asked`.
        n_trials: settings tried for each method.
        most_trainings: what everything together may cost.
        without: parts to leave out.

    Raises:
        MethodError: an unknown method, or one without anything to tune.
        InvalidInputError: an exact method, or a number out of range.
    """

    policy: Policy
    methods: tuple[str, ...] = ()
    n_probes: int = lots.N_PROBES
    n_models: int = lots.N_MODELS
    n_trials: int = N_TRIALS
    most_trainings: int | None = None
    without: frozenset[str] = frozenset()
    n_canaries: int = lots.N_CANARIES

    def __post_init__(self) -> None:
        if unknown := sorted(self.without - set(PARTS)):
            raise InvalidInputError(f"Expected parts among {', '.join(PARTS)} to leave out, got {', '.join(unknown)}.")
        if self.most_trainings is not None and self.most_trainings < 1:
            raise InvalidInputError(f"Expected at least 1 training to pay for, got {self.most_trainings}.")
        if self.candidates:
            _ = self.qualification(self.candidates)
            if self.tunes:
                for method in self.candidates:
                    _ = self.search(method, (("somebody",),))

    @property
    def candidates(self) -> tuple[str, ...]:
        """The methods in question."""
        return self.methods or tuple(method for method in self.policy.ladder[:-1] if method not in FROM_SPARE)

    @property
    def spare_rung(self) -> str:
        """The rung that starts from spares: the policy's own, or `spare`."""
        return next((method for method in self.policy.ladder if method in FROM_SPARE), FROM_SPARE[0])

    @property
    def tunes(self) -> bool:
        """Whether settings may be searched: only a qualification uses them."""
        return bool(self.candidates) and self.policy.qualification and not {TUNE, QUALIFY} & self.without

    @property
    def n_tuning_models(self) -> int:
        """Runs of a trial on each subject."""
        return min(N_TUNING_MODELS, self.n_models)

    def qualification(self, methods: Sequence[str]) -> lots.Asked:
        """What `expunge qualify` is asked."""
        return lots.Asked(
            tuple(methods), self.policy, n_probes=self.n_probes, n_references=self.n_models, n_runs=self.n_models,
            n_canaries=self.n_canaries,
        )  # fmt: skip

    def search(self, method: str, forget_sets: tuple[tuple[str, ...], ...]) -> tuning.Search:
        """What `expunge tune` is asked."""
        n = self.n_tuning_models
        return tuning.Search(method, forget_sets, n_trials=self.n_trials, n_models=n, n_confirm=n)


@dataclass(frozen=True)
class Facts:
    """What prices depend on.

    Attributes:
        n_subjects: of the training split whose erasure does not wait.
        n_references: references and originals of all blocks.
        n_blocks: banks of references.
        oracles: of each block or subject, by the method that reads them.
    """

    n_subjects: int
    n_references: int
    n_blocks: int
    oracles: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_tuning(self) -> int:
        """Subjects tuned on: enough have to be left for a lot."""
        return max(0, min(N_TUNING, self.n_subjects - lots.FEWEST_PROBES))


@dataclass(frozen=True)
class Plan:
    """What is done, and what it costs at most.

    Attributes:
        references: trainings for them; 0 if they are left out.
        spares: one for each block, now and again after each run; 0 if they are left out.
        methods: that are qualified.
        tuned: those of them whose settings are searched first.
        searches, qualifications: trainings' worth of all of them together, at most.
        reasons: sentences on what is left out.
    """

    references: int
    spares: int
    methods: tuple[str, ...]
    tuned: tuple[str, ...]
    searches: float
    qualifications: float
    reasons: tuple[str, ...]


def decide(asked: Asked, facts: Facts) -> Plan:
    """Which parts are done. A part that does not fit into `most_trainings` is left out whole."""
    left = math.inf if asked.most_trainings is None else asked.most_trainings - 1.0  # one is the production model's
    reasons = []
    references = facts.n_references
    if REFERENCES in asked.without:
        references = 0
        reasons.append("References are left out: the first request for each block waits for them.")
    elif references > left:
        reasons.append(
            f"References are left out: they cost {references} trainings, and {asked.most_trainings} were allowed for "
            "everything. The first request for each block waits for them."
        )
        references = 0
    spares, why_not = _spares(asked, facts, left, references)
    methods, why = _methods(asked, facts, left - references - spares)
    tuned = () if TUNE in asked.without else methods
    reasons += [reason for reason in (why_not, why) if reason]
    prices = search_price(asked, facts, tuned), qualification_price(asked, facts, methods)
    return Plan(references, spares, methods, tuned, *prices, tuple(reasons))


def _spares(asked: Asked, facts: Facts, left: float, references: int) -> tuple[int, str]:
    """Spares that are kept, and why there are none."""
    if SPARES in asked.without:
        return 0, "Spares are left out: each erasure trains at the request."
    if not references:
        return 0, "Spares are left out too: a request that waits for references gains nothing by them."
    if facts.n_blocks > left - references:
        return 0, f"Spares are left out: they cost {facts.n_blocks} trainings, and {left - references:.0f} are left."
    return facts.n_blocks, ""


def _methods(asked: Asked, facts: Facts, left: float) -> tuple[tuple[str, ...], str]:
    """The methods that are tuned and qualified, and why others are not."""
    if why := _why_none(asked, facts):
        return (), why
    candidates = asked.candidates
    for n in range(len(candidates), 0, -1):
        if methods_price(asked, facts, candidates[:n]) <= left:
            rest = ", ".join(candidates[n:])
            why = f"Left out, because they do not fit into {asked.most_trainings} trainings: {rest}." if rest else ""
            return candidates[:n], why
    cheapest = methods_price(asked, facts, candidates[:1])
    return (), (
        f"No method is qualified: {candidates[0]} alone costs up to {cheapest:.0f} trainings, and of the "
        f"{asked.most_trainings} allowed for everything {max(0.0, left):.0f} are left."
    )


def _why_none(asked: Asked, facts: Facts) -> str:
    """Why no method is tuned and qualified, whatever may be spent; empty: some can be."""
    candidates, policy = asked.candidates, asked.policy
    named = ", ".join(candidates)
    if not candidates:
        return f"No method is qualified: the ladder of the policy {policy.name} has none, and none was named."
    if QUALIFY in asked.without:
        return f"Qualification is left out, and with it tuning, which nothing else here uses: {named}."
    if not policy.qualification:
        return (
            f"No method is qualified: the policy {policy.name} draws {policy.n_models} runs of a method for each "
            "request instead, which costs more than the one training of exact retraining."
        )
    if facts.n_subjects < lots.FEWEST_PROBES + (TUNE not in asked.without):
        return (
            f"No method is qualified: with {facts.n_subjects} subjects to train on, too few are left for a lot of "
            "probe subjects."
        )
    price = methods_price(asked, facts, candidates)
    if not asked.methods and price >= facts.n_subjects:
        return (
            f"No method is qualified: to tune and qualify {named} costs up to {price:.0f} trainings. An erasure by "
            f"exact retraining costs 1, and there are {facts.n_subjects} subjects: even if all of them were erased one "
            "by one, it would not pay. Name the methods to have them qualified all the same."
        )
    return ""


def methods_price(asked: Asked, facts: Facts, methods: Sequence[str]) -> float:
    """Trainings' worth of tuning and qualifying methods, at most."""
    tuned = () if TUNE in asked.without else methods
    return search_price(asked, facts, tuned) + qualification_price(asked, facts, methods)


def search_price(asked: Asked, facts: Facts, methods: Sequence[str]) -> float:
    """Trainings' worth of the searches: references shared, two originals and all trials of each, and oracles."""
    if not methods:
        return 0.0
    n, people = asked.n_tuning_models, facts.n_tuning
    runs = (asked.n_trials + 1) * n * people * asked.policy.cost_share_max
    oracles = max((facts.oracles.get(method, 0) for method in methods), default=0)
    return people * (2 * n + oracles) + len(methods) * (2 + runs)


def qualification_price(asked: Asked, facts: Facts, methods: Sequence[str]) -> float:
    """Trainings' worth of the qualifications: `service.studies.lots.Asked.most_trainings`, and oracles."""
    if not methods:
        return 0.0
    oracles = max((facts.oracles.get(method, 0) for method in methods), default=0)
    return asked.qualification(methods).most_trainings + (asked.n_probes + bool(asked.n_canaries)) * oracles


def oracles_of(context: Context, methods: Sequence[str]) -> dict[str, int]:
    """Oracles that each method reads, with the settings in force."""
    recipe, tuned = recipe_of(context), context.settings.tuned
    return {method: n_wanted({method: settings_for(method, recipe, tuned).to_dict()}) for method in methods}


def tuned_file(context: Context) -> Path:
    """Where settings that are found are kept."""
    return context.settings.tuned or context.settings.home / "tuned.json"


def is_tuned_here(context: Context, method: str) -> bool:
    """Whether settings for the recipe were found on this home's subjects, and not only on public data."""
    recipe, file = recipe_of(context), tuned_file(context)
    found = tuned_record(method, recipe, file if file.exists() else context.settings.tuned)
    if found is None or "people" in found["record"]:  # nobody, or subjects of public data
        return False
    with reading(context.engine) as s:
        return bool(_noted(s.exec(select(TunedSubject)), recipe, (method,)))


def tuning_people(context: Context, methods: Sequence[str], n: int) -> list[str]:
    """Whom the methods are tuned on: those who were before, else drawn by lot; noted, so that no lot draws them."""
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    faces = open_images(images)
    present = sorted(set(faces.train_subjects()) - asked_to_go(context, faces))
    with reading(context.engine) as s:
        tags = _noted(s.exec(select(TunedSubject).order_by(col(TunedSubject.tag))), recipe, methods)
    by_tag = {context.keyring.block_hash(person): person for person in present}
    people = [by_tag[tag] for tag in tags if tag in by_tag][:n]
    if not people:
        tagged = [(person, tag) for tag, person in by_tag.items()]
        drawn = lots.draw_lot(tagged, f"tuning {images.manifest_digest}", 0, n)
        people = sorted(drawn, key=context.keyring.block_hash)  # as they are found next time: a search knows its order
    for method in methods:
        note_tuned(context, method, recipe, people)
    return people


def _noted(rows: Any, recipe: Recipe, methods: Sequence[str]) -> list[str]:
    """Tags of whom methods were tuned on, each once."""
    tags = (row.tag for row in rows if row.recipe_digest == recipe.digest and row.method in methods)
    return list(dict.fromkeys(tags))
