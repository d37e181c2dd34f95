"""What Schemathesis cannot know: which bytes an image is made of."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st

from tests.service.versions import picture

_PNG = picture(1)
_BYTES = (
    st.binary(max_size=200) | st.binary(max_size=50).map(lambda tail: _PNG[: len(_PNG) // 2] + tail) | st.just(_PNG)
)

for _kind in ("image/jpeg", "image/png", "image/webp"):
    schemathesis.openapi.media_type(_kind, _BYTES)
