#!/usr/bin/env bash
# A variable that is set to nothing is a value: a `Path | None` becomes the working directory, a `str` is empty, and
# both hide what .env says. Of two spellings of a name that differ in case, the later one in the environment counts.
# What one expects: NAME= in a container's environment means the default, and NAME in capitals is the variable.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  pydantic-settings==2.16.3 pydantic==2.14.3 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import os
import sys
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

Path(".env").write_text("APP_HOST=from-file\n")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="APP_", env_file=".env")
    home: Path | None = None
    host: str = "127.0.0.1"
    port: int = 3000


class Careful(Settings):
    model_config = SettingsConfigDict(env_ignore_empty=True)


os.environ |= {"APP_HOME": "", "APP_HOST": ""}
os.environ["APP_PORT"] = "1"
os.environ["app_port"] = "2"
plain, careful = Settings(), Careful()
print("pydantic-settings", importlib.metadata.version("pydantic-settings"))
print("expected: home None, host from-file, port 1")
print(f"found:    home {plain.home!r}, host {plain.host!r}, port {plain.port}")
print(f"with env_ignore_empty=True: home {careful.home!r}, host {careful.host!r}")
as_stated = (plain.home, plain.host, plain.port) == (Path("."), "", 2)
sys.exit(0 if as_stated and (careful.home, careful.host) == (None, "from-file") else 1)
EOF
