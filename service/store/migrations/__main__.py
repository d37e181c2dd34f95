"""`python -m service.store.migrations "what changes"`: write the next step, what `tables.py` has beyond the others."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from alembic import command

from service.settings import Settings
from service.store.engine import connect
from service.store.migrations import HEAD, config_of

if __name__ == "__main__":
    message = " ".join(sys.argv[1:])
    if not message:
        sys.exit('Expected what changes: python -m service.store.migrations "add a column"')
    with tempfile.TemporaryDirectory() as home:
        engine = connect(Settings(home=Path(home), database_url=""))
        with engine.begin() as connection:
            script = command.revision(config_of(connection), message, autogenerate=True, rev_id=f"{int(HEAD) + 1:04d}")
        engine.dispose()
    written = Path(script.path)  # type: ignore[union-attr]
    lines = [line for line in written.read_text().splitlines() if "# ###" not in line]
    written.write_text("\n".join(lines) + "\n")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", written], check=False)
