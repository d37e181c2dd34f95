"""Which figures of an audit are kept after a subject is erased.

Some figures have one value for each of the subject's images. They contain no pixel and no name, but each describes a
single image. By default they are kept in reports and certificates, so that somebody can judge the erasure later. The
controller decides with `EXPUNGE_KEEP_EVIDENCE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.settings import Settings
from unlearning import files

PER_IMAGE: Final = frozenset({
    "exact_epsilons", "score.forgetting.epsilons", "score.forgetting.points", "bounds.bounds", "band.low", "band.high",
    "detection.ks", "detection.ks_p_values", "detection.ks_adjusted", "detection.kl_unlearned_retrained",
    "detection.kl_retrained_unlearned",
})  # fmt: skip
"""Figures of an evaluation that have one value for each image, by their place."""


def kept(figures: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The figures that go into the certificate and the database: all, or only those of all images together."""
    return dict(figures) if settings.keep_evidence else _without_per_image(figures)


def forget_reports(settings: Settings) -> None:
    """Destroy the reports of all audits, also of runs that stopped, unless they are to be kept; can be repeated."""
    if not settings.keep_evidence:
        files.destroy_folder(settings.reports_folder)


def _without_per_image(figures: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    return {
        name: _without_per_image(value, f"{place}{name}.") if isinstance(value, Mapping) else value
        for name, value in figures.items()
        if f"{place}{name}" not in PER_IMAGE
    }
