"""Audit of machine unlearning: computes figures and a verdict from margins, with NumPy and SciPy.

Names are imported on first use, so that checking a certificate does not import SciPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.checks import Check
    from audit.evaluation import Evaluation, Evidence, evaluate
    from audit.policy import PRESETS, Policy, load_policy
    from audit.proof.certificate import verify
    from audit.statistics.epsilon import epsilons
    from audit.statistics.exposure import Exposure, exposure
    from audit.statistics.features import FeaturesGate, descriptors, features_gate
    from audit.statistics.forgetting import competition_score, forgetting_quality, forgetting_ratio
    from audit.statistics.gate import Gate, gate
    from audit.statistics.margins import margins
    from audit.statistics.spread import PooledSpread, pooled_spread

__all__ = [
    "PRESETS",
    "Check",
    "Evaluation",
    "Evidence",
    "Exposure",
    "FeaturesGate",
    "Gate",
    "Policy",
    "PooledSpread",
    "competition_score",
    "descriptors",
    "epsilons",
    "evaluate",
    "exposure",
    "features_gate",
    "forgetting_quality",
    "forgetting_ratio",
    "gate",
    "load_policy",
    "margins",
    "pooled_spread",
    "verify",
]

_MODULES = {
    "PRESETS": "policy",
    "Check": "checks",
    "Evaluation": "evaluation",
    "Evidence": "evaluation",
    "Exposure": "statistics.exposure",
    "FeaturesGate": "statistics.features",
    "Gate": "statistics.gate",
    "Policy": "policy",
    "PooledSpread": "statistics.spread",
    "competition_score": "statistics.forgetting",
    "descriptors": "statistics.features",
    "epsilons": "statistics.epsilon",
    "evaluate": "evaluation",
    "exposure": "statistics.exposure",
    "features_gate": "statistics.features",
    "forgetting_quality": "statistics.forgetting",
    "forgetting_ratio": "statistics.forgetting",
    "gate": "statistics.gate",
    "load_policy": "policy",
    "margins": "statistics.margins",
    "pooled_spread": "statistics.spread",
    "verify": "proof.certificate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    return getattr(import_module(f"audit.{_MODULES[name]}"), name)
