"""The folder of working files of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.settings import Settings
from unlearning import files


class RunFolder:
    """Working files of one run; no user ids in names or content, and nothing left after `destroy`."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.path = settings.runs_folder / run_id
        self.path.mkdir(parents=True, exist_ok=True)

    def weights(self, step: int) -> Path:
        """Weights of the step's candidate."""
        return self.path / f"step-{step}.safetensors"

    def unlearned(self) -> Path:
        """Margins of the unlearned banks."""
        return self.path / "unlearned"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or none."""
        path = self.path / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        files.overwrite(self.path / f"{name}.json", json.dumps(content).encode())

    def destroy(self) -> None:
        """Destroy every file, then the folder."""
        files.destroy_folder(self.path)
