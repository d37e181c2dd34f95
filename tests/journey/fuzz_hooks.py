"""What Schemathesis cannot know: which bytes an image is made of."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st

from tests.service.versions import image

_PNG = image(1)
_BYTES = (
    st.binary(max_size=200) | st.binary(max_size=50).map(lambda tail: _PNG[: len(_PNG) // 2] + tail) | st.just(_PNG)
)

for _kind in ("image/jpeg", "image/png", "image/webp"):
    schemathesis.openapi.media_type(_kind, _BYTES)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Not one image in place of the list: a form has no lists, so both are one part of that name, and valid."""
    return not isinstance(case.body, dict) or isinstance(case.body.get("image", []), list)
