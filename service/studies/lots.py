"""Lots of probe subjects for `service.studies.qualification`: asked for, drawn, logged, taken up again.

Tested in `tests/service/studies/test_qualification.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from audit.policy import Policy
from audit.proof import log
from audit.proof.qualification import LOT_KIND
from audit.qualification import FEWEST_MODELS, Bars
from service.banks.qualifications import Identity
from service.context import Context
from service.errors import InvalidInputError
from service.keys.keyring import commitment
from service.store import ledger, tables
from service.store.engine import reading
from service.store.tables import TunedSubject
from service.studies import canaries
from service.studies.looks import N_ORIGINALS
from unlearning.methods import find_method, settings_for, tuned_record
from unlearning.recipes import Recipe

N_PROBES, N_MODELS, N_CANARIES = 8, 23, 4
"""23 models: the most with which `standard` costs at most 300 trainings, relearning included."""
MOST_CANARIES = 100
FEWEST_PROBES = 3
"""Of two probe subjects that both passed one would know no more than that one subject in five would."""


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        methods: to qualify, each for itself.
        n_probes: probe subjects, fewer if there are not so many.
        n_references: models trained without each probe subject.
        n_runs: runs of each method on each probe subject.
        n_canaries: planted subjects of the self-test (`service.studies.canaries`); 0: none.

    Raises:
        MethodError: an unknown method.
        InvalidInputError: no method, an exact one, or a number out of range.
    """

    methods: tuple[str, ...]
    policy: Policy
    n_probes: int = N_PROBES
    n_references: int = N_MODELS
    n_runs: int = N_MODELS
    n_canaries: int = N_CANARIES

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

        if not 0 <= self.n_canaries <= MOST_CANARIES:
            raise InvalidInputError(
                f"Expected from 0 to {MOST_CANARIES} canaries, {N_CANARIES} is usual, got {self.n_canaries}."
            )

    @property
    def reading_oracles(self) -> tuple[str, ...]:
        """Methods that need further trainings for each probe subject; how many is in their settings."""
        return tuple(name for name in self.methods if find_method(name).needs_oracles)

    @property
    def most_trainings(self) -> float:
        """What it costs at most in trainings, if no run costs more than the policy's bar; relearning and oracles, whose
        price is known once the data and the settings are read, not counted."""
        share = self.policy.cost_share_max
        runs = len(self.methods) * self.n_probes * self.n_runs
        whole = self.n_probes * self.n_references + 1 + N_ORIGINALS + runs * share
        return whole + (canaries.most_trainings(len(self.methods), share) if self.n_canaries else 0.0)

    @property
    def n_relearned(self) -> int:
        """Models that learn a little of a probe subject again: its references and runs, and every original, by which
        it is looked at as well. Canaries are not."""
        return self.n_probes * (self.n_references + 1 + N_ORIGINALS + len(self.methods) * self.n_runs)


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


def identity_of(context: Context, method: str, recipe: Recipe) -> Identity:
    """What a qualification of the method with its settings in force holds for."""
    return Identity.of(method, settings_for(method, recipe, context.settings.tuned).to_dict(), recipe)


def tuned_on(context: Context, recipe: Recipe, methods: Sequence[str], people: Sequence[str]) -> set[str]:
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


def take_lot(  # noqa: PLR0917
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
        waits = (
            row.passed is None
            and _n_canaries(s, row) == asked.n_canaries
            and all(probe["tag"] in by_tag for probe in row.probes)
        )
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
        n_canaries=asked.n_canaries, probes=[each for each, _, _ in committed],
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


def _n_canaries(s: Session, row: tables.Qualification) -> int:
    """Canaries that a lot was logged with; none before there were any."""
    entry = log.parse_json(s.get_one(tables.LogLeaf, row.lot_log_index).entry)
    return int(entry.get("n_canaries", 0))


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
