"""How the serving processes are started: command line and environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from service.settings import Settings

_KEEP_ALIVE_SECONDS = 75  # longer than clients and proxies keep idle connections, so that they close them, not we
_GRACE_SECONDS = 20


def serve_command(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Arguments and whole environment of the serving processes' parent.

    BentoML gets a home within ours: at its start it wipes the metrics of every server that shares its home.
    """
    root = Path(__file__).resolve().parent.parent
    home = settings.home.resolve()
    arguments = [
        sys.executable, "-m", "bentoml", "serve", "service.app:Expunge",
        "--working-dir", str(root),
        "--host", settings.host,
        "--port", str(settings.port),
        "--timeout-keep-alive", str(_KEEP_ALIVE_SECONDS),
        "--timeout-graceful-shutdown", str(_GRACE_SECONDS),
    ]  # fmt: skip
    environment = {
        **inherited(settings),
        "EXPUNGE_HOME": str(home),
        "BENTOML_HOME": str(settings.local_folder.resolve() / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)  # of another server
    return arguments, environment


def inherited(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings in the place of every `EXPUNGE_…` variable.

    One that stayed would hold in the child wherever the settings say nothing.
    """
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("EXPUNGE_")}
    values = settings.model_dump().items()
    given = {f"EXPUNGE_{name.upper()}": str(value) for name, value in values if value not in ("", None)}
    return {**others, **given}
