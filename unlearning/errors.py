"""Errors of this package, named by what a caller can do about them.

UnlearningError
├── FileError               remove what is in the file's place
├── FacesError              fix the data folder; `.row` is the line in its table
├── ImageError              take another image: not PNG, JPEG or WebP, or damaged
│   └── ImageTooLargeError  take a smaller image: too many bytes or pixels
├── RecipeError             fix the recipe: unknown name, unknown key, value out of range
├── MethodError             choose another method or other settings of it
├── ExitedError             mend the network or the method: its code called `sys.exit`
├── FeaturesError           the network has no penultimate features: do without them
└── WeightsError            weights that must not be loaded: damaged, or of another model

A message says what was expected, what was given and what to do. It never contains a user id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UnlearningError(Exception):
    """Base class of the errors that this package raises."""


class FileError(UnlearningError):
    """What is to be destroyed is no plain file. Names of files may be telling, so it is named by its inode."""


class FacesError(UnlearningError):
    """The data folder breaks one of its rules.

    Args:
        message: What was expected, what was given and what to do.
        row: Line number in metadata.csv as an editor shows it (the header is line 1), where one row is at fault.
            A row is named by its line, never by its content: messages end up in logs, and user ids must not.
    """

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message if row is None else f"metadata.csv, line {row}: {message}")
        self.row = row


class ImageError(UnlearningError):
    """The bytes are not an image of an accepted format, or are damaged."""


class ImageTooLargeError(ImageError):
    """The image has more bytes or pixels than are allowed."""


class RecipeError(UnlearningError):
    """The recipe is unknown or one of its values is out of range."""


class MethodError(UnlearningError):
    """The unlearning method is unknown, its settings are out of range, or it cannot work on this model."""


class ExitedError(UnlearningError):
    """Code of a network or a method called `sys.exit`; see `staying`."""


class FeaturesError(UnlearningError):
    """No linear layer makes the network's logits, so there is nothing to be called its penultimate features."""


class WeightsError(UnlearningError):
    """The file of weights is damaged, incomplete or belongs to another architecture."""


@contextmanager
def staying() -> Iterator[None]:
    """Around code that is not ours, of a network or a method: its `sys.exit` is an error like any other.

    It would end a thread without a word, leave a run open for ever, or end a command with the status of a success.

    Raises:
        ExitedError: with the traceback of the exit, so that it says where that was.
    """
    try:
        yield
    except SystemExit as error:
        raise ExitedError(
            "Expected a network or a method to give a result; its code called sys.exit. Let it raise an error."
        ).with_traceback(error.__traceback__) from error
