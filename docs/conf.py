"""Settings of the documentation's build: `make docs` writes pages that need no other host."""

from __future__ import annotations

from service import __version__

project = "Expunge"
author = "the Expunge authors"
copyright = author
release = __version__

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "Expunge"
html_static_path: list[str] = []
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "friendly"
