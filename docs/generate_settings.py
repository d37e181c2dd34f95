"""`docs/settings.md` from the settings themselves: `python docs/generate_settings.py > docs/settings.md`."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from service.settings import Settings


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
        values = f" One of {', '.join(f'`{value}`' for value in allowed)}." if allowed else ""
        lines.append(f"| `EXPUNGE_{name.upper()}` | {default} | {field.description}{values} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_table(), end="")  # noqa: T201
