"""A search for one method's settings on people set apart for it: a fixed number of trials, resumable, with its record.

A trial draws settings (`unlearning/search.py` has the ranges; Optuna's sampler chooses), unlearns every tuning forget
set N times from one original (Reuse-N-1), and is judged by the mean over forget sets of

    min(1, F / F_null) · min(1, RA ratio) · min(1, TA ratio)

less 10 for every unit by which an accuracy ratio, averaged over forget sets, falls short of 0.985, and 5 for every unit
of cost above 16 % of retraining's. A trial that is worse after a forget set than the median of those before it ends
there. The best is then measured again from another original with other seeds, for the first figures are selected.

Trials lie in a journal of the home: a search that was killed goes on, one that is done trains nothing. Optuna is
imported here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audit.statistics.exchangeability import exchangeability
from audit.statistics.forgetting import mean_ratio, quick_ratio
from service.banks.method_code import method_code_version
from service.banks.store import Bank
from service.context import Context
from service.errors import InvalidInputError
from service.models.manifest import library_versions
from service.studies.experiments import draw_oracles, draw_references
from service.studies.forget_setup import Stage, Task, run_original, set_stage
from service.training.jobs import Outcome, in_children
from service.training.spec import intact
from unlearning import files
from unlearning.devices import describe_device, resolve_device
from unlearning.errors import MethodError
from unlearning.methods import Settings as MethodSettings
from unlearning.methods import find_method
from unlearning.recipes import Recipe
from unlearning.search import Range, Space, find_space

if TYPE_CHECKING:
    import optuna

FEWEST_MODELS = 4
LOWEST_ACCURACY, HIGHEST_COST = 0.985, 0.16
ALPHA = 0.05
_FINISHED = ("COMPLETE", "PRUNED")
OPTUNA_MISSING = "Expected optuna, which searches; install it with `pip install 'expunge[tuning]'`."

OnTrial = Callable[[int, int, float], None]
"""Called with (trials done, trials wanted, best objective so far)."""


@dataclass(frozen=True)
class Search:
    """What is asked.

    Attributes:
        method: to tune.
        forget_sets: user ids forgotten together, one set after another; none of them is reported on elsewhere.
        n_trials: settings tried.
        n_models: runs of a trial on each forget set; twice as many retrained models judge them.
        n_confirm: runs of the best on each forget set.
        seed: of the sampler.

    Raises:
        MethodError: no such method, or nothing to tune in it.
        InvalidInputError: nobody to forget, or a number out of range.
    """

    method: str
    forget_sets: tuple[tuple[str, ...], ...]
    n_trials: int = 8
    n_models: int = 32
    n_confirm: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        find_space(self.method)
        if not self.forget_sets or not all(self.forget_sets):
            raise InvalidInputError("Expected at least one person to tune on; name some who are not reported on.")
        if self.n_trials < 1 or min(self.n_models, self.n_confirm) < FEWEST_MODELS:
            raise InvalidInputError(
                f"Expected at least 1 trial and {FEWEST_MODELS} models, got {self.n_trials}, {self.n_models} and "
                f"{self.n_confirm}."
            )


@dataclass(frozen=True)
class Figures:
    """What settings get, averaged over forget sets."""

    forgetting_ratio: float
    lowest_forgetting_ratio: float
    retain_ratio: float
    test_ratio: float
    rejected: float
    """Share of single models the exchangeability test turns away at 5 %."""
    cost_share: float
    score_ratio: float
    """The mean of what the module's text says, before anything is taken off."""

    @property
    def objective(self) -> float:
        """What the search climbs."""
        lacking = sum(max(0.0, LOWEST_ACCURACY - ratio) for ratio in (self.retain_ratio, self.test_ratio))
        return self.score_ratio - 10.0 * lacking - 5.0 * max(0.0, self.cost_share - HIGHEST_COST)


def figures(pairs: Sequence[tuple[Sequence[Outcome], Bank]]) -> Figures:
    """The figures of one trial's runs, each forget set's with the bank that judges them."""
    rows = []
    turned_away: list[bool] = []
    seconds: list[float] = []
    retraining: list[float] = []
    for outcomes, bank in pairs:
        margins = np.array([outcome.margins for outcome in outcomes], dtype=np.float64)
        ratio = quick_ratio(margins, bank.margins.astype(np.float64), seed=0)
        retain = mean_ratio([outcome.retain_accuracy for outcome in outcomes], bank.retain_accuracy)
        test = mean_ratio([outcome.test_accuracy for outcome in outcomes], bank.test_accuracy)
        rows.append((0.0 if math.isnan(ratio) else min(1.0, ratio), retain, test))
        turned_away += [exchangeability(row, bank.margins).p_value < ALPHA for row in margins]
        seconds += [outcome.seconds for outcome in outcomes]
        retraining += bank.seconds.tolist()
    ratios, retain_ratios, test_ratios = (np.array(column) for column in zip(*rows, strict=True))
    return Figures(
        forgetting_ratio=float(ratios.mean()),
        lowest_forgetting_ratio=float(ratios.min()),
        retain_ratio=float(retain_ratios.mean()),
        test_ratio=float(test_ratios.mean()),
        rejected=float(np.mean(turned_away)),
        cost_share=float(np.median(seconds) / np.median(retraining)),
        score_ratio=float((ratios * retain_ratios.clip(max=1.0) * test_ratios.clip(max=1.0)).mean()),
    )


def tune(context: Context, search: Search, *, on_trial: OnTrial = lambda done, wanted, best: None) -> dict[str, Any]:
    """The best settings found and the record of how: `{"settings": …, "record": …}` as `tuned.json` keeps them.

    Raises:
        InvalidInputError: optuna is not installed.
        MethodError: every trial's settings were refused or diverged.
        DataChangedError: somebody was erased from the data meanwhile.
        as `service.studies.forget_setup.set_stage`.
    """
    stages = [set_stage(context, people) for people in search.forget_sets]
    with intact(stages[0].plan.spec.images):
        return _tune(context, search, stages, on_trial)


def _tune(context: Context, search: Search, stages: Sequence[Stage], on_trial: OnTrial) -> dict[str, Any]:
    banks = [draw_references(context, stage, 2 * search.n_models, lambda done, wanted: None) for stage in stages]
    space = find_space(search.method)
    oracles: list[NDArray[np.float32] | None] = [None] * len(stages)
    if find_method(search.method).needs_oracles:
        n_oracles = int(space.settings(search.method, space.guess).to_dict()["n_oracles"])
        oracles = [draw_oracles(context, stage, n_oracles, lambda done, wanted: None) for stage in stages]
    study, is_pruned = _study(context, search, stages, space)

    def measure(settings: MethodSettings, *, original: int, n: int, trial: optuna.Trial | None = None) -> Figures:
        pairs: list[tuple[Sequence[Outcome], Bank]] = []
        for step, (stage, bank, said) in enumerate(zip(stages, banks, oracles, strict=True)):
            task = Task(stage, search.method, settings, bank.key, said)
            first = original * 1_000_000  # other seeds from another original
            calls = ((stage.origin, original, first + seed, [task]) for seed in range(n))
            drawn = []
            for ((_, outcome),) in in_children(run_original, calls, context.settings):
                if isinstance(outcome, MethodError):
                    raise outcome
                drawn.append(outcome)
            pairs.append((sorted(drawn, key=lambda outcome: outcome.seed), bank))
            if trial is not None:
                trial.report(figures(pairs).objective, step)
                if step + 1 < len(stages) and trial.should_prune():
                    raise is_pruned
        return figures(pairs)

    def objective(trial: optuna.Trial) -> float:
        try:
            settings = space.settings(search.method, {name: _draw(trial, name, r) for name, r in space.ranges.items()})
            return measure(settings, original=0, n=search.n_models, trial=trial).objective
        except MethodError as error:  # refused, or diverged
            trial.set_user_attr("error", str(error))
            raise is_pruned from error

    done = _n_finished(study)
    on_trial(done, search.n_trials, _best(study))
    while done < search.n_trials:
        study.sampler = _sampler(search, done)
        study.optimize(objective, n_trials=1)
        done = _n_finished(study)
        on_trial(done, search.n_trials, _best(study))
    if math.isnan(_best(study)):
        raise MethodError(f"Every trial of {search.method} was refused or diverged; narrow its ranges.")
    best = space.settings(search.method, {name: _rounded(value) for name, value in study.best_params.items()})
    confirmed = measure(best, original=1, n=min(search.n_confirm, search.n_models))
    return {
        "settings": _differing(search.method, best),
        "record": {
            "n_trials": done,
            "n_pruned": sum(trial.state.name == "PRUNED" for trial in study.trials),
            "n_retrained": 2 * search.n_models,
            "n_unlearned": search.n_models,
            "n_confirmed": min(search.n_confirm, search.n_models),
            "searched_objective": round(study.best_value, 4),
            "objective": round(confirmed.objective, 4),
            **{name: round(value, 4) for name, value in asdict(confirmed).items()},
            "machine": describe_device(resolve_device(context.settings.device)),
            **library_versions(),
        },
    }


def keep(path: Path, recipe: Recipe, method: str, found: dict[str, Any]) -> None:
    """Put what was found into a file of tuned settings, made if there is none; another recipe of that name goes."""
    tables = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    table = tables.get(recipe.name)
    if table is None or table["recipe_digest"] != recipe.digest:
        table = tables[recipe.name] = {"recipe_digest": recipe.digest, "methods": {}}
    table["methods"] = dict(sorted({**table.get("methods", {}), method: found}.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.overwrite(path, (json.dumps(tables, indent=2) + "\n").encode(), mode=0o666)  # whole, whenever it is killed


def require_optuna() -> None:
    """Nothing if the search can be done here.

    Raises:
        InvalidInputError: optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise InvalidInputError(OPTUNA_MISSING)


def _study(
    context: Context, search: Search, stages: Sequence[Stage], space: Space
) -> tuple[optuna.Study, type[Exception]]:
    """The search's journal, whatever a killed process left running in it queued again; and what ends a trial early."""
    require_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    words = (search.method, search.n_models, search.seed, space, method_code_version(search.method))
    name = hashlib.sha256(repr((words, [stage.digest for stage in stages])).encode()).hexdigest()[:32]
    folder = context.settings.home / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / f"{name}.log"))),
        study_name=name,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1),
        load_if_exists=True,
    )
    if not any(trial.state.name in ("RUNNING", "WAITING", *_FINISHED) for trial in study.trials):
        study.enqueue_trial(dict(space.guess))
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params or dict(space.guess))
    return study, optuna.TrialPruned


def _sampler(search: Search, n_finished: int) -> optuna.samplers.BaseSampler:
    """Chooses the settings of one trial.

    A sampler draws from its seed anew wherever a search goes on, so one seed would give the settings of trials before.
    """
    import optuna

    seed = int(np.random.SeedSequence([search.seed, n_finished]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=True)


def _draw(trial: optuna.Trial, name: str, numbers: Range) -> float:
    return _rounded(trial.suggest_float(name, numbers.low, numbers.high, log=numbers.log, step=numbers.step))


def _rounded(value: float) -> float:
    """Three figures: nobody's result depends on the fourth."""
    return float(f"{value:.3g}")


def _n_finished(study: optuna.Study) -> int:
    """Trials that count: judged, ended early, or refused; not those a kill cut off."""
    return sum(trial.state.name in _FINISHED for trial in study.trials)


def _best(study: optuna.Study) -> float:
    values = [trial.value for trial in study.trials if trial.state.name == "COMPLETE" and trial.value is not None]
    return max(values, default=math.nan)


def _differing(method: str, settings: MethodSettings) -> dict[str, Any]:
    """What is not the authors'."""
    authors = find_method(method).settings().to_dict()
    return {name: value for name, value in settings.to_dict().items() if value != authors[name]}
