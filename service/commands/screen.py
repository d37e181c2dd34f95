"""What every command prints with, and how it ends."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from service.settings import Settings

DOES_NOT_HOLD: Final = 1
NOT_CHECKED: Final = 2  # also the status of a command that was not understood

console = Console(highlight=False)


class _Count(MofNCompleteColumn):
    """How far a task is; nothing while nobody knows of how many."""

    def render(self, task: Task) -> Text:
        """Done and all."""
        return Text("") if task.total is None else super().render(task)


class _Bars(Progress):
    """Bars of which those stay that came to count something: not that of a task that failed before."""

    def stop(self) -> None:
        """End the display."""
        for task in self.tasks:
            if task.total is None:
                self.update(task.id, visible=False)
        super().stop()


def progress_bar() -> Progress:
    """A bar that says what is done, how far it is and how long it will take."""
    return _Bars(
        TextColumn("{task.description}"), BarColumn(), _Count(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip


def tell_of_priority(settings: Settings) -> None:
    """Say beforehand if trainings will stand back, or have fewer processes than cores."""
    from service.training.governor import yields
    from service.training.parallel import jobs_of

    if (jobs := jobs_of(settings)).short_of_memory:
        console.print(f"Training processes: {jobs.n}. {jobs.why}")
    if yields(settings):
        console.print(
            "Predictions are served from this home on this machine: trainings pause as far as callers feel them. "
            "EXPUNGE_TRAINING_PRIORITY=normal lets them take their share of the processor."
        )


def be_printable() -> None:
    """Let no character end a command: what the terminal has no sign for is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def can_show(text: str) -> bool:
    """Whether the encoding of the standard output has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def sentence_of(error: BaseException) -> str | None:
    """What is said of an error that was foreseen; none: it is a fault of ours."""
    from pydantic import ValidationError

    from audit.errors import AuditError
    from service.errors import ExpungeError
    from unlearning.errors import UnlearningError

    if isinstance(error, ExpungeError):
        return error.detail
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        name = "EXPUNGE_" + "_".join(str(part) for part in first["loc"]).upper()
        return f"Expected {name} to be valid: {first['msg']}."
    return str(error) if isinstance(error, AuditError | UnlearningError) else None


def fail(sentence: str, status: int = 1) -> NoReturn:
    """End with a sentence on the standard error, if it takes one."""
    try:
        if sys.stderr is not None:
            Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="bold red", markup=False)
            sys.stderr.flush()
    except (OSError, ValueError, SystemExit):  # rich answers a closed pipe with an end of its own
        _give_up(sys.stderr)
    sys.exit(status)


class Findings:
    """What a command found, for `stating`; written whole when it ends, or it counts as not checked."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.holds = True

    def say(self, line: str, *, holds: bool = True) -> None:
        """Add a line; `holds=False` if it says that what was checked does not hold."""
        self._lines.append(line)
        self.holds = self.holds and holds

    def write(self) -> None:
        """Write the lines.

        Raises:
            OSError: the standard output is closed or takes no more.
        """
        if sys.stdout is None:
            raise OSError("it is closed")
        try:
            sys.stdout.write("".join(f"{line}\n" for line in self._lines))
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            _give_up(sys.stdout)
            raise OSError(error.strerror if isinstance(error, OSError) else "it is closed") from None


@contextmanager
def stating(*, found_by: tuple[type[Exception], ...] = ()) -> Iterator[Findings]:
    """Around a command whose exit status is a statement.

    0: what was checked holds. `DOES_NOT_HOLD` (1): it does not. `NOT_CHECKED` (2): nothing is said, because something
    could not be read, what was found could not be written, or the program has a fault.

    Args:
        found_by: errors that say what was found, and not that nothing could be.
    """
    findings = Findings()
    try:
        yield findings
    except (typer.Exit, SystemExit):
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except found_by as error:
        fail(str(error), DOES_NOT_HOLD)
    except BaseException as error:
        if (sentence := sentence_of(error)) is not None:
            fail(sentence, NOT_CHECKED)
        if isinstance(error, OSError):
            fail(f"Expected to read {error.filename or 'the input'}: {error.strerror or error}.", NOT_CHECKED)
        fail("".join(traceback.format_exception(error)), NOT_CHECKED)
    try:
        findings.write()
    except OSError as error:
        fail(f"What was found could not be written to the standard output: {error}.", NOT_CHECKED)
    raise typer.Exit(0 if findings.holds else DOES_NOT_HOLD)


def _give_up(stream: TextIO) -> None:
    """Let nothing more go to a stream: at its end the interpreter would try again, and change the exit status."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
