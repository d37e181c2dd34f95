"""What makes serving faster by private parts of the libraries below it, one file a speed-up.

None of them changes an answer. `EXPUNGE_SPEEDUPS` names those in use; one whose private part is missing in the
installed version is left out, with the log line `speedup.unavailable`. Each file says what its speed-up is worth, and
`benchmarks/speedups.py` measures it: the service with all of them beside the service without one.
"""

from __future__ import annotations

from typing import Final

import structlog

from service.errors import StartupError
from service.settings import Settings

log = structlog.get_logger()

PACKED_WEIGHTS: Final = "packed_weights"
EARLY_REFUSAL: Final = "early_refusal"
FAIR_CONNECTIONS: Final = "fair_connections"
SPEEDUPS: Final = (PACKED_WEIGHTS, EARLY_REFUSAL, FAIR_CONNECTIONS)


def is_on(name: str, settings: Settings) -> bool:
    """Whether the settings want a speed-up.

    Raises:
        StartupError: they name one that does not exist.
    """
    if settings.speedups in ("all", "none"):
        return settings.speedups == "all"
    wanted = {part.strip() for part in settings.speedups.split(",")}
    if wanted - set(SPEEDUPS):
        raise StartupError(
            f"Expected EXPUNGE_SPEEDUPS to be all, none or names among {', '.join(SPEEDUPS)}, "
            f"got {', '.join(sorted(wanted - set(SPEEDUPS)))!a}."
        )
    return name in wanted


def unavailable(name: str, error: Exception) -> None:
    """Say that the service goes on without a speed-up, because what it rests on is missing or changed."""
    log.warning("speedup.unavailable", name=name, error=type(error).__name__)
