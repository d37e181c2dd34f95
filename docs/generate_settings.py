"""`docs/settings.md` from the settings themselves: `python docs/generate_settings.py > docs/settings.md`."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.settings import Settings

BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def settings_table() -> str:
    """Markdown of every setting: variable, default, meaning."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read once when a process starts. A missing or empty one has its default.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default == "" else f"`{field.default}`"
        allowed = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        if field.annotation is bool:
            default, allowed = f"`{str(field.default).lower()}`", ("true", "false")
        if field.default is None:
            default = ""
        values = f" One of {', '.join(f'`{value}`' for value in allowed)}." if allowed else range_of(field)
        lines.append(f"| `EXPUNGE_{name.upper()}` | {default} | {field.description}{values} |")
    return "\n".join(lines) + "\n"


def range_of(field: FieldInfo) -> str:
    """A sentence on the numbers that a setting takes; empty: all, or it is none."""
    found = [
        f"{words} {getattr(bound, name):,.12g}"
        for bound in field.metadata
        for name, words in BOUNDS.items()
        if hasattr(bound, name)
    ]
    return f" {' and '.join(found).capitalize()}." if found else ""


if __name__ == "__main__":
    print(settings_table(), end="")  # noqa: T201
