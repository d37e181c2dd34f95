"""The settings as commands read them: pydantic, which checks them, is imported when one is read, not for `--help`.

Tested in `tests/service/test_cli.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings
else:

    def Settings() -> Settings:  # noqa: N802 (commands use it as the class that type checkers see)
        """Settings of this process's environment."""
        from service import settings

        return settings.Settings()


__all__ = ["Settings"]
