"""Errors of the audit. Each message says what was expected, what was given and what to do.

AuditError
├── BankError          arrays of margins or accuracies that cannot be judged; fix the bank
│   └── NotANumberError    a margin is NaN; carries `model` and `example`
├── OptionError        a parameter outside its range
└── PolicyError        a policy that cannot be read or contradicts itself

Tested in `tests/audit/test_policy.py`.
"""

from __future__ import annotations


class AuditError(ValueError):
    """Base class of the errors that `audit` raises."""


class BankError(AuditError):
    """Arrays that cannot be judged: wrong shape, too few models, not comparable."""


class NotANumberError(BankError):
    """A value is NaN; `model` and `example` are its row and column (`example` is None for a per-model value)."""

    def __init__(self, message: str, *, model: int | None = None, example: int | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.example = example


class OptionError(AuditError):
    """A parameter outside its range."""


class PolicyError(AuditError):
    """A policy that cannot be read or contradicts itself."""


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise OptionError unless `low <= value <= high` (NaN never is)."""
    if not low <= value <= high:
        raise OptionError(f"Expected {name}={value} in [{low}, {high}].")
