"""Reads the image files of a prediction call: one image as the body itself, or one or several in a form.

Tested in `tests/service/serving/test_predict.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import InvalidInputError, UnsupportedImageError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "image"
_MOST_OTHERS = 8  # parts of a form with another name


async def one_image(request: Request) -> bytes:
    """The image of a call that takes one.

    Raises:
        UnsupportedImageError: the body is declared to be something else.
        InvalidInputError: a form that cannot be read, or without one file named `image`.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        (found,) = await _files(request, most=1)
        return found
    if kind.startswith("image/") or kind in {"", "application/octet-stream"}:  # what it is, the bytes decide
        return await request.body()
    raise UnsupportedImageError(
        "Expected the content type image/jpeg, image/png, image/webp, or multipart/form-data with the field 'image'."
    )


async def many_images(request: Request, *, most: int) -> list[bytes]:
    """The images of a call that takes several, in the order of the form.

    Raises:
        UnsupportedImageError: the body is no form.
        InvalidInputError: a form that cannot be read, or with no file or too many named `image`.
    """
    if _kind(request) != "multipart/form-data":
        raise UnsupportedImageError("Expected the content type multipart/form-data with one part 'image' an image.")
    return await _files(request, most=most)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _files(request: Request, *, most: int) -> list[bytes]:
    """Contents of the form's parts named `image`, at least one and at most `most`, with or without a file name."""
    form = _Form(most)
    _, options = parse_options_header(request.headers["content-type"])
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks)
        async for piece in request.stream():
            parser.write(piece)
        parser.finalize()
    except (FormParserError, KeyError) as error:
        raise InvalidInputError(f"Expected a well-formed form with {form.wanted}, named '{FIELD}'.") from error
    if not form.files:
        raise InvalidInputError(f"Expected a file in the form field '{FIELD}'; the form has none.")
    return form.files


class _Form:
    """The parts named `image` of a form, collected in memory: a face never touches the disk.

    Starlette's parser takes a part for an image only if it has a plain `filename`, which clients may leave out.
    """

    def __init__(self, most: int) -> None:
        self.files: list[bytes] = []
        self.wanted = "one file" if most == 1 else f"one to {most} files"
        self._most = most
        self._n_others = 0
        self._name, self._value, self._disposition = b"", b"", b""
        self._file: bytearray | None = None

    @property
    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition = b""

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") == FIELD.encode():
            self._file = bytearray()
        else:
            self._n_others += 1
        if len(self.files) + (self._file is not None) > self._most:
            raise InvalidInputError(f"Expected a form with {self.wanted}, named '{FIELD}', got more.")
        if self._n_others > _MOST_OTHERS:
            raise InvalidInputError(f"Expected a form with at most {_MOST_OTHERS} parts not named '{FIELD}', got more.")

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file += data[start:end]

    def _end(self) -> None:
        if self._file is not None:
            self.files.append(bytes(self._file))
            self._file = None
