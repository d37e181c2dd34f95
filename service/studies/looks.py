"""What a qualification looks at besides margins: which originals it needs, and what was seen of all its models.

Tested in `tests/service/studies/test_qualification.py`.
"""

from __future__ import annotations

from audit.statistics.looks import LooksEvidence
from service.banks import looks
from service.banks.store import Bank, BankStore
from service.studies.experiments import Experiment

N_ORIGINALS = 8
"""Trained with everybody, once for all probe subjects, besides the original that runs begin from."""


def originals_of(person: str) -> Experiment:
    """Originals that tell in which direction to look; number 0 of them is the one that runs begin from."""
    return Experiment((), (person,), "reuse_n_n", n_models=1 + N_ORIGINALS)


def gathered(
    store: BankStore, references: Bank, runs: Bank, originals: Bank, *, n_references: int, n_runs: int
) -> LooksEvidence:
    """What was looked at in a method's runs on one probe subject, and in the models beside them, as far as it was.

    Args:
        originals: of the experiment `originals_of`.
    """
    of_originals = looks.descriptors_beside(store, originals, 1 + N_ORIGINALS)
    others_references = looks.others_beside(store, references, n_references)
    others_runs = looks.others_beside(store, runs, n_runs)
    return LooksEvidence(
        references=looks.descriptors_beside(store, references, n_references),
        runs=looks.descriptors_beside(store, runs, n_runs),
        originals=None if of_originals is None else of_originals[1:],
        nothing_done=None if of_originals is None else of_originals[0],
        others_references=None if others_references is None else others_references[1],
        others_runs=None if others_runs is None else others_runs[1],
    )
