"""What stays of the evidence when a person is erased.

An audit's figures hold some for each photograph: no picture, no name, but of one person's photographs one by one. They
stay in reports and certificates, for whoever must judge the erasure later; whether that is wanted is the controller's
to say (`EXPUNGE_KEEP_EVIDENCE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.settings import Settings
from unlearning import files

OF_PHOTOGRAPHS: Final = frozenset({
    "exact_epsilons", "score.forgetting.epsilons", "score.forgetting.points", "bounds.bounds", "band.low", "band.high",
    "detection.ks", "detection.ks_p_values", "detection.ks_adjusted", "detection.kl_unlearned_retrained",
    "detection.kl_retrained_unlearned",
})  # fmt: skip
"""Figures of an evaluation with a value for each photograph, by their place."""


def kept(figures: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Figures that go into the certificate and the database: all, or those of all photographs together."""
    return dict(figures) if settings.keep_evidence else _of_all_together(figures)


def forget_reports(settings: Settings) -> None:
    """Destroy the audits' reports unless they are kept, those of runs that stopped too; may be repeated."""
    if not settings.keep_evidence:
        files.destroy_folder(settings.reports_folder)


def _of_all_together(figures: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    return {
        name: _of_all_together(value, f"{place}{name}.") if isinstance(value, Mapping) else value
        for name, value in figures.items()
        if f"{place}{name}" not in OF_PHOTOGRAPHS
    }
