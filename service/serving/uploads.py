"""Reads the image files of a prediction call: one image as the body itself, or one or several in a form."""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import InvalidInputError, UnsupportedImageError
from service.http.body_limit import FORM_OVERHEAD_BYTES
from service.serving import images

FIELD = "image"


async def one_image(request: Request, *, max_bytes: int) -> bytes:
    """The image of a call that takes one.

    Raises:
        UnsupportedImageError: the body is declared to be something else.
        InvalidInputError: a form that cannot be read, or without one file named `image`.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        (found,) = await _files(request, most=1, max_bytes=max_bytes)
        return found
    if kind in images.MEDIA_TYPES or kind in {"", "application/octet-stream"}:
        return await request.body()
    raise UnsupportedImageError(
        "Expected the content type image/jpeg, image/png, image/webp, or multipart/form-data with the field 'image'."
    )


async def many_images(request: Request, *, most: int, max_bytes: int) -> list[bytes]:
    """The images of a call that takes several, in the order of the form.

    Raises:
        UnsupportedImageError: the body is no form.
        InvalidInputError: a form that cannot be read, or with no file or too many named `image`.
    """
    if _kind(request) != "multipart/form-data":
        raise UnsupportedImageError("Expected the content type multipart/form-data with one part 'image' an image.")
    return await _files(request, most=most, max_bytes=max_bytes)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _files(request: Request, *, most: int, max_bytes: int) -> list[bytes]:
    """Files of the form's field, at least one and at most `most`."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=most, max_fields=8)
    parser.spool_max_size = max_bytes + FORM_OVERHEAD_BYTES  # a face never touches the disk, as by `request.form()`
    wanted = "one file" if most == 1 else f"one to {most} files"
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidInputError(f"Expected a well-formed form with {wanted}, named '{FIELD}'.") from error
    try:
        uploads = [upload for upload in form.getlist(FIELD) if isinstance(upload, UploadFile)]
        if not uploads:
            raise InvalidInputError(f"Expected a file in the form field '{FIELD}'; the form has none.")
        return [await upload.read() for upload in uploads]
    finally:
        await form.close()
