"""Policies: the bars of an audit and the ladder of methods, fixed and logged before the run they judge.

A run tries the methods of `ladder` one after another and deploys the first candidate that passes every check; the
last rung is always exact retraining, tried up to `retrain_attempts` times with fresh seeds.

Presets (`PRESETS`):

| bar                                      | standard         | strict           | competition |
|------------------------------------------|------------------|------------------|-------------|
| models in each bank                      | 8                | 128              | 512         |
| runs of the method for each request      | –                | 128              | 512         |
| the method                               | qualified        | –                | –           |
| retain accuracy / bank's                 | ≥ .97            | ≥ .99            | ≥ .95       |
| test accuracy / bank's                   | ≥ .97            | ≥ .99            | ≥ .95       |
| gate, α                                  | .05              | .10              | reported    |
| features of the deployed model, α        | reported         | reported         | reported    |
| who else became more exposed             | reported         | reported         | reported    |
| deployed model exchangeable, p           | reported         | reported         | ≥ .05       |
| F / F_null                               | ≥ .5 of probes   | ≥ .8             | ≥ .5        |
| the same in the worst view of the images | ≥ .65 of probes  | ≥ .65 of probes  | reported    |
| forget set's combined KS, p              | reported         | ≥ .01            | reported    |
| cost / retraining's                      | ≤ 20 %           | ≤ 20 %           | ≤ 20 %      |
| subjects erased since bank was trained   | ≤ 5 %            | ≤ 2 %            | 0           |
| exact retraining, attempts               | 3                | 3                | 3           |
| ladder before it                         | remix,           | oracle_matching  | remix,      |
|                                          | random_mask      |                  | random_mask |

`spare` and `catch_up` are `standard` with another ladder: instead of approximate methods a model that was trained ahead
without the subjects' block, as it is or trained some epochs further on all that is retained.

`standard` asks two questions at different times. Whether a method is any good is settled ahead by its *qualification*
on subjects drawn by lot (`audit.qualification`); an approximate method without a valid one is no rung, and the run goes
on to the next. Whether this one model is all right is the *gate*'s question (`audit.statistics.gate`), to which eight
references are enough. `strict` and `competition` draw a bank of runs of the method for each request instead, which
costs more than retraining.

**α and the ladder.** There are two kinds of error, and they call for opposite choices of α.

* *A false positive*: an exact retrain is rejected. At an approximate rung this costs the time of the next rung. A human
  has to act only if all `retrain_attempts` exact retrains are rejected, and that is at most as likely as rejecting one
  of them, whatever their dependence. So a run's false positive rate for the gate is at most α when **every attempt is
  tested at the full α**, and with fresh seeds far lower, though not α³, since the attempts share their references
  (docs/gate.md).
* *A false negative*: a candidate that has not forgotten is accepted. This error harms a subject. A test "p ≥ α" that is
  passed by *not* being significant gets easier to pass when α is divided: five tests at α = .05 would be held at .01
  each, below the smallest p-value of 64 references, and reject nothing. False negatives are limited by the number of
  attempts: a bad candidate that passes one test with probability β passes one of k with probability at most k·β.

Therefore α is not divided but grows with the position: the first candidate is tested at α, each further approximate one
at a *higher* level (`level_at`: 2α, 3α, …), and every attempt of exact retraining at α. The ladder is short, fixed
beforehand and part of the digest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from audit.errors import PolicyError, in_range

RETRAIN = "retrain"
FROM_SPARE = ("spare", "catch_up")
EXACT = (*FROM_SPARE, RETRAIN)
"""Methods whose weights never depended on the forget set: exact retraining, and what starts from a spare model that was
trained ahead without the subjects' block. Their attempts are tested at the full α and need no qualification."""
FROM_ORACLES = ("oracle_matching",)
"""Methods that read oracle margins: models trained ahead without the subjects' block, beside the references."""
ADDED_LATER = (
    "gate_alpha",
    "qualification",
    "cheapest_first",
    "view_ratio_min",
    "shadow_changed_max",
    "features_alpha",
    "margins_only",
)


@dataclass(frozen=True)
class Policy:
    """Bars and ladder of a run. Immutable, checked at construction, identified by `digest`.

    Raises:
        OptionError, PolicyError: a bar outside its range or a ladder that does not end in exact retraining.
    """

    name: str
    n_models: int
    """Fewest models in each bank."""
    retain_ratio_min: float
    test_ratio_min: float
    exchangeability_alpha: float
    """Level of the deployed model's test; 0 reports p without a bar."""
    forgetting_ratio_min: float
    """Bar of F / F_null."""
    cost_share_max: float
    """Largest allowed cost of unlearning, as a share of retraining's seconds."""
    ladder: tuple[str, ...]
    """Method names, cheapest first, the last one "retrain"."""
    retrain_attempts: int = 3
    detection_alpha: float = 0.0
    """Level of the combined KS test over the forget set; 0 reports p without a bar."""
    staleness_max: float = 0.0
    """Largest share of a bank's subjects that may have been erased since it was trained; 0 requires a fresh bank."""
    gate_alpha: float = 0.0
    """Level of the gate; 0 reports it without a bar."""
    qualification: bool = False
    """Whether an approximate method must be qualified, in place of a bank of its runs for each request. The bars of F /
    F_null and of mean accuracy are then those of the qualification."""
    view_ratio_min: float = 0.0
    """Bar of F / F_null in the worst view of the images, in a method's qualification; 0 reports it without a bar."""
    cheapest_first: bool = False
    """Whether a run tries the rungs in the order of their expected price, from measured shares and pass rates, in place
    of the ladder's. Each keeps the level of its place in the ladder."""
    shadow_changed_max: float = 0.0
    """Largest share of live predictions to which a candidate may give another label than the model in service; 0
    reports it without a bar."""
    features_alpha: float = 0.0
    """Level of the features' test of the candidate (`audit.statistics.features`); 0 reports it without a bar. Where
    references were made before features were kept, a bar leaves the audit undetermined."""
    margins_only: bool = False
    """Whether the candidate is judged by margins on the forget set alone: neither its features nor the margins of
    retained subjects are looked at, which saves the forward passes of up to a thousand images."""

    def __post_init__(self) -> None:
        self._settle_types()
        in_range("n_models", self.n_models, 4, 1_000_000)
        in_range("retain_ratio_min", self.retain_ratio_min, 0.0, 1.0)
        in_range("test_ratio_min", self.test_ratio_min, 0.0, 1.0)
        in_range("exchangeability_alpha", self.exchangeability_alpha, 0.0, 0.5)
        in_range("forgetting_ratio_min", self.forgetting_ratio_min, 0.0, 1.0)
        in_range("cost_share_max", self.cost_share_max, 0.0, 1.0)
        in_range("retrain_attempts", self.retrain_attempts, 1, 20)
        in_range("detection_alpha", self.detection_alpha, 0.0, 0.5)
        in_range("staleness_max", self.staleness_max, 0.0, 1.0)
        in_range("gate_alpha", self.gate_alpha, 0.0, 0.5)
        in_range("view_ratio_min", self.view_ratio_min, 0.0, 1.0)
        in_range("features_alpha", self.features_alpha, 0.0, 0.5)
        in_range("shadow_changed_max", self.shadow_changed_max, 0.0, 1.0)
        if self.qualification and not self.gate_alpha:
            raise PolicyError(
                "Expected gate_alpha above 0 where qualification is true: without a bank of runs the gate is all that "
                "judges the candidate."
            )
        if self.margins_only and self.features_alpha:
            raise PolicyError(
                "Expected features_alpha of 0 where margins_only is true: features are not looked at then."
            )
        if not self.ladder or self.ladder[-1] != RETRAIN or RETRAIN in self.ladder[:-1]:
            raise PolicyError(
                f"Expected a ladder of methods whose last and only exact one is '{RETRAIN}', got {list(self.ladder)}."
            )
        if len(set(self.ladder)) != len(self.ladder):
            raise PolicyError(f"Expected each method once in the ladder, got {list(self.ladder)}.")

    def _settle_types(self) -> None:
        """Numbers as float or int as declared and the ladder as a tuple, so that equal policies have equal digests."""
        for field in fields(self):
            value = getattr(self, field.name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if field.type == "str" and isinstance(value, str) and value:
                settled: Any = value
            elif (field.type == "int" and whole) or (field.type == "bool" and isinstance(value, bool)):
                settled = value
            elif field.type == "float" and (whole or isinstance(value, float)):
                settled = float(value)
            elif field.name == "ladder" and isinstance(value, list | tuple) and all(isinstance(m, str) for m in value):
                settled = tuple(value)
            else:
                expected = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}.get(
                    str(field.type), "names"
                )
                raise PolicyError(f"Expected {field.name} of the policy to be {expected}, got {value!r}.")
            object.__setattr__(self, field.name, settled)

    def level_at(self, rung: int, alpha: float) -> float:
        """Level of a test of the candidate at a rung: α, 2α, … (at most ½), and α for exact methods."""
        level = alpha * (1 if self.is_exact(rung) else rung + 1)
        return min(0.5, round(level, 12))  # 3 × 0.05 is 0.15000000000000002, which p = 0.15 would miss

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the policy's canonical JSON (sorted keys, no spaces).

        A bar that came later and is not asked is left out, so that policies from before it keep their digests.
        """
        content = {name: value for name, value in asdict(self).items() if value or name not in ADDED_LATER}
        return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def method_at(self, rung: int) -> str:
        """Method of a rung, counted from 0."""
        if not 0 <= rung < len(self.ladder):
            raise PolicyError(f"Expected rung in [0, {len(self.ladder) - 1}], got {rung}.")
        return self.ladder[rung]

    def is_exact(self, rung: int) -> bool:
        """Whether the rung is of a method that never reads a weight which depended on the forget set."""
        return self.method_at(rung) in EXACT

    @property
    def reads_spares(self) -> bool:
        """Whether a rung starts from a spare, so that spares are kept for every block."""
        return not set(FROM_SPARE).isdisjoint(self.ladder)

    @property
    def reads_oracles(self) -> bool:
        """Whether a rung reads oracles, so that they are kept for every block."""
        return not set(FROM_ORACLES).isdisjoint(self.ladder)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields and digest."""
        return {**asdict(self), "ladder": list(self.ladder), "digest": self.digest}


_STANDARD = Policy(
    name="standard",
    n_models=8,
    retain_ratio_min=0.97,
    test_ratio_min=0.97,
    exchangeability_alpha=0.0,
    forgetting_ratio_min=0.5,
    cost_share_max=0.2,
    ladder=("remix", "random_mask", RETRAIN),
    staleness_max=0.05,
    gate_alpha=0.05,
    qualification=True,
    view_ratio_min=0.65,
)
_STRICT = Policy(
    name="strict",
    n_models=128,
    retain_ratio_min=0.99,
    test_ratio_min=0.99,
    exchangeability_alpha=0.0,
    forgetting_ratio_min=0.8,
    cost_share_max=0.2,
    ladder=("oracle_matching", RETRAIN),
    detection_alpha=0.01,
    staleness_max=0.02,
    gate_alpha=0.1,
    view_ratio_min=0.65,
)
_COMPETITION = Policy(
    name="competition",
    n_models=512,
    retain_ratio_min=0.95,
    test_ratio_min=0.95,
    exchangeability_alpha=0.05,
    forgetting_ratio_min=0.5,
    cost_share_max=0.2,
    ladder=("remix", "random_mask", RETRAIN),
)
_SPARE = replace(_STANDARD, name="spare", ladder=("spare", RETRAIN))
_CATCH_UP = replace(_STANDARD, name="catch_up", ladder=("catch_up", RETRAIN))
PRESETS = {policy.name: policy for policy in (_STANDARD, _STRICT, _COMPETITION, _SPARE, _CATCH_UP)}


def load_policy(name_or_path: str | Path) -> Policy:
    """A preset by name, or a policy from a JSON file with the fields of `Policy` (a `digest` in it is checked).

    Raises:
        PolicyError: no such preset or file, not JSON, unknown or missing fields, a digest that does not match.
    """
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    path = Path(name_or_path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(
            f"Expected a policy's name ({', '.join(PRESETS)}) or a readable JSON file, got {str(name_or_path)!r}."
        ) from error
    except ValueError as error:
        raise PolicyError(f"Expected {path} to be JSON, but {error}.") from error
    if not isinstance(raw, dict):
        raise PolicyError(f"Expected {path} to be a JSON object, got {type(raw).__name__}.")
    expected_digest = raw.pop("digest", None)
    unknown = sorted(set(raw) - {field.name for field in fields(Policy)})
    if unknown:
        raise PolicyError(f"Expected only fields of a policy in {path}, got {', '.join(unknown)}.")
    try:
        policy = Policy(**raw)
    except TypeError as error:
        raise PolicyError(f"Expected all fields of a policy in {path}: {error}.") from error
    if expected_digest not in (None, policy.digest):
        raise PolicyError(f"Expected the policy in {path} to have digest {expected_digest}, got {policy.digest}.")
    return policy
