"""Which metrics a PromQL expression asks for."""

from __future__ import annotations

import re

from service.telemetry.catalog import SERVING, WORKER


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics: what begins like ours, with recorded ones, and `up`."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:expunge[a-z0-9_:]*|up)\b", without_strings))


def exported() -> set[str]:
    """Every name that the two listeners expose, with the suffixes of histograms."""
    names: set[str] = set()
    for name, measure in {**SERVING, **WORKER}.items():
        suffixes = ("_bucket", "_sum", "_count") if measure.kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names
