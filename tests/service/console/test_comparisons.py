"""The comparison of methods that the console shows."""

from __future__ import annotations

import os
from collections.abc import Callable

from service.console import comparisons
from service.context import Context
from service.keys import api_keys
from tests.service.console.conftest import Browser

SVG = "<svg xmlns='http://www.w3.org/2000/svg'><desc>seif 0.4 &amp; 10 %</desc><style>.a{fill:red}</style></svg>"


def test_the_latest_comparison_is_shown_and_nothing_else_of_the_folder(
    signed_in: Callable[..., Browser], context: Context
) -> None:
    browser, root = signed_in(api_keys.AUDIT), context.settings.evaluations_folder
    assert comparisons.latest(context.settings) is None
    assert "latest comparison" not in browser.get("/methods").text
    for seconds, name in ((100, "older"), (200, "newer")):
        (root / name).mkdir(parents=True)
        (root / name / "comparison.json").write_text("{}")
        (root / name / f"comparison-{name}.svg").write_text(SVG)
        os.utime(root / name / "comparison.json", (seconds, seconds))
    page = browser.get("/methods").text
    assert 'src="/methods/comparison/comparison-newer.svg" alt="seif 0.4 &amp; 10 %"' in page
    assert "comparison-older" not in page
    drawing = browser.get("/methods/comparison/comparison-newer.svg")
    assert drawing.headers["content-type"].startswith("image/svg+xml")
    assert "style-src 'sha256-" in drawing.headers["content-security-policy"]
    for name in ("comparison-older.svg", "comparison.json", "..%2Folder%2Fcomparison-older.svg"):
        assert browser.get(f"/methods/comparison/{name}").status_code == 404
