"""`expunge rerun` and `expunge rerun-check`: runs made a second time, and whether any was left out.

Tested in `tests/service/erasure/test_reruns.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.environment import Settings
from service.commands.screen import stating
from service.errors import StartupError


def rerun(run_id: Annotated[str, typer.Argument(help="An open run, from the console or the log.")]) -> None:
    """Make an open run's candidate again from the same inputs, in a fresh process.

    Status 0: the weights are equal. 1: they are not. 2: it was not made again.

    Only until the purge: then the images, the weights the run began from and its files are gone, and nobody can
    make it again. The outcome is logged; it does not stop the run. A share of the runs is made twice anyway.
    """
    with stating() as findings:
        from service.context import Context
        from service.erasure.reruns import repeat

        first, again = repeat(Context.open(Settings()), run_id)
        findings.say("Equal weights." if first == again else "OTHER weights.", holds=first == again)
        findings.say(f"first   {first}\nagain   {again}")


def rerun_check(
    log: Annotated[Path, typer.Argument(help="All entries of the log, one a line, from the first on.")],
    key: Annotated[Path, typer.Option(help="The service's keys/rerun.key, as the operator disclosed it.")],
) -> None:
    """For auditors: whether every run that the key chooses was made a second time.

    Status 0: all were. 1: some were not, or were logged under another key. 2: it was not checked.
    """
    with stating() as findings:
        from audit.proof.reruns import omissions

        try:
            found = omissions(log.read_bytes().splitlines(), key.read_bytes())
        except (ValueError, LookupError, TypeError) as error:
            raise StartupError(f"Expected the entries of a log in {log}, one JSON object a line: {error!r}.") from error
        findings.say(f"{found.n_runs} completed runs; the key chooses {len(found.chosen)} of them.")
        for run_id in found.other_key:
            findings.say(f"Run {run_id} was logged under another key.", holds=False)
        for run_id in found.omitted:
            findings.say(f"Run {run_id} should have been made twice and was not.", holds=False)
