"""Which figures of an audit are kept after a subject is erased.

Some figures have one value for each of the subject's images. They contain no pixel and no name, but each describes a
single image. By default they are kept in reports and certificates, so that somebody can judge the erasure later. The
controller decides with `EXPUNGE_KEEP_EVIDENCE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import structlog

from service.context import Context
from service.settings import Settings
from service.store.engine import fit_id, reading
from service.store.tables import Run
from unlearning import files

log = structlog.get_logger()

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


def forget_old_reports(context: Context) -> int:
    """Destroy the reports of runs that ended `report_days` ago; gives of how many runs."""
    settings, n_destroyed = context.settings, 0
    folders = (
        list(settings.reports_folder.iterdir()) if settings.report_days and settings.reports_folder.is_dir() else []
    )
    with reading(context.engine) as s:
        runs = [s.get(Run, folder.name) for folder in folders if fit_id(folder.name)]
    last = context.now() - timedelta(days=settings.report_days)
    for run in runs:
        if run is not None and run.finished_at is not None and run.finished_at <= last:
            files.destroy_folder(settings.reports_folder / run.id)
            n_destroyed += 1
    if n_destroyed:
        log.info("reports.destroyed", n=n_destroyed)
    return n_destroyed


def _without_per_image(figures: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    return {
        name: _without_per_image(value, f"{place}{name}.") if isinstance(value, Mapping) else value
        for name, value in figures.items()
        if f"{place}{name}" not in PER_IMAGE
    }
