"""Errors a caller can do something about, and their one shape on the wire (RFC 9457).

ExpungeError
├── InvalidInputError      422  mend the request
│   ├── UnsupportedImageError  415  send JPEG, PNG or WebP
│   └── TooLargeError          413  send less
├── NotAuthenticatedError  401  send a valid key
├── NotAllowedError        403  ask for a key with the scope
├── NotFoundError          404  look elsewhere
├── ConflictError          409  the state does not allow it
├── TryLaterError          503  wait `retry_after_seconds`
│   └── TooManyAtOnceError     429  send fewer at the same time
├── DataFolderError             mend the data folder
│   └── DataChangedError            start again, with the data as they are
├── ReferencesError             a reference bank that cannot answer what it is asked
├── WeightsError                weights that must not be loaded
├── PoorModelError              a model that says the same of everybody; train another
├── RunStoppedError             a run cannot go on; `detail` is for the human who must look, and names nobody
├── StorageError                the shared storage did not do as asked
├── BackupError                 a backup that cannot be made now, or is not to be restored
├── EngineError                 what computes predictions did not do as asked
└── StartupError                the process cannot start as configured

Tested in `tests/service/http/test_problems.py`.
"""

from __future__ import annotations

from typing import Any


class ExpungeError(Exception):
    """Base of all errors raised on purpose; `detail` says what was expected, what came and what to do."""

    status = 500
    title = "Internal error"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class InvalidInputError(ExpungeError):
    """The caller sent something that can be mended."""

    status = 422
    title = "Invalid input"


class UnsupportedImageError(InvalidInputError):
    """The bytes are not an image of an accepted format."""

    status = 415
    title = "Unsupported image"


class TooLargeError(InvalidInputError):
    """More bytes or pixels than allowed."""

    status = 413
    title = "Too large"


class NotAuthenticatedError(ExpungeError):
    """No key, or one that is unknown, expired or revoked."""

    status = 401
    title = "Not authenticated"


class NotAllowedError(ExpungeError):
    """The key lacks a scope."""

    status = 403
    title = "Not allowed"


class NotFoundError(ExpungeError):
    """No such thing, or not the caller's."""

    status = 404
    title = "Not found"


class ConflictError(ExpungeError):
    """The thing's state does not allow it."""

    status = 409
    title = "Conflict"


class TryLaterError(ExpungeError):
    """Not now; the answer carries `Retry-After`."""

    status = 503
    title = "Try later"

    def __init__(self, detail: str, retry_after_seconds: int = 1, **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.retry_after_seconds = retry_after_seconds


class TooManyAtOnceError(TryLaterError):
    """This one client has as many images here as it may."""

    status = 429
    title = "Too many at once"


class DataFolderError(ExpungeError):
    """The data folder breaks one of its rules; the message names the row."""

    title = "Data folder"


class DataChangedError(DataFolderError):
    """The data are not those any more that were read: somebody was erased, or the folder was edited."""

    def __init__(
        self,
        detail: str = "Expected the data to stay as they were when this began, but they changed meanwhile: somebody "
        "was erased, or the folder was edited. Nothing made from changed data was kept; start again, with the data as "
        "they are.",
    ) -> None:
        super().__init__(detail)


class ReferencesError(ExpungeError):
    """A row or a question that does not fit the reference bank."""


class RunStoppedError(ExpungeError):
    """A run cannot go on; the sentence is for the human who must look, and names nobody."""


class WeightsError(ExpungeError):
    """Weights whose digest or signature does not match, or that were destroyed."""

    title = "Weights refused"


class PoorModelError(ExpungeError):
    """A model that does not tell its classes apart, so that judging it would say nothing."""

    title = "Poor model"


class StorageError(ExpungeError):
    """The shared storage could not be reached, or holds other bytes than it should."""

    title = "Shared storage"


class BackupError(ExpungeError):
    """A backup that cannot be made now, is not whole, or must not be restored like this."""

    title = "Backup"


class EngineError(ExpungeError):
    """A model was used, or answered, in a way from which no image could be told its own answer."""

    title = "Engine"


class StartupError(ExpungeError):
    """The process cannot start as it is configured."""

    title = "Cannot start"
