"""An audit of machine unlearning: margins in, a verdict with figures out; NumPy and SciPy on arrays."""

from audit.certificate import verify
from audit.checks import Check
from audit.epsilon import epsilons
from audit.evaluation import Evaluation, Evidence, evaluate
from audit.forgetting import competition_score, forgetting_quality, forgetting_ratio
from audit.margins import margins
from audit.policy import PRESETS, Policy, load_policy

__all__ = [
    "PRESETS",
    "Check",
    "Evaluation",
    "Evidence",
    "Policy",
    "competition_score",
    "epsilons",
    "evaluate",
    "forgetting_quality",
    "forgetting_ratio",
    "load_policy",
    "margins",
    "verify",
]
