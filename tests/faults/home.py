"""A home whose runs take a second: drawn people under names that occur nowhere by chance, for the search of raw bytes.

Fine-tuning always fails (one epoch of two is more than one per cent) and exact retraining always passes: each run goes
through a failed audit and a passed one, and what ends otherwise ends so because of a fault.
"""

from __future__ import annotations

import csv
import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from service.context import Context
from service.keys import api_keys
from service.launch import free_ports
from service.settings import Settings
from service.store.engine import session
from service.training.jobs import release_processes
from service.training.production import train_production
from unlearning.faces import read_metadata
from unlearning.faces.dataset import METADATA
from unlearning.faces.sources import synthetic

N_IMAGES = 2  # of each person, so that a purge can be killed between them
RECIPE = {
    "name": "tiny", "architecture": "small_resnet", "image_size": [16, 16], "channels": 3, "width": 8, "epochs": 12,
    "batch_size": 16, "learning_rate": 0.05, "flip": True, "dtype": "float32",
}  # fmt: skip
POLICY = {
    "name": "tiny", "n_models": 4, "retain_ratio_min": 0.0, "test_ratio_min": 0.0, "exchangeability_alpha": 0.0,
    "forgetting_ratio_min": 0.0, "cost_share_max": 0.01, "ladder": ["finetune", "retrain"], "retrain_attempts": 2,
}  # fmt: skip
SIZE = (16, 16)


def make_home(folder: Path, *, n_subjects: int, seed: int, **changes: Any) -> Settings:
    """A home with data, a model of generation 1, and an operator's key in `operator.key`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    (folder / "policy.json").write_text(json.dumps(POLICY))
    ports = free_ports(2)
    usual: dict[str, Any] = {
        "recipe": str(folder / "recipe.json"), "policy": str(folder / "policy.json"), "port": ports[0],
        "console_port": ports[1], "jobs": 1, "device": "cpu", "log_format": "json", "poll_seconds": 0.05,
        "lease_seconds": 10.0, "rebuild_references": "off", "api_workers": 2, "training_priority": "normal",
    }  # fmt: skip
    settings = Settings(home=folder, **(usual | changes))
    synthetic.write_folder(
        settings.data_folder, n_subjects=n_subjects, images_per_subject=N_IMAGES, size=SIZE, seed=seed
    )
    _name_uniquely(settings.data_folder)
    context = Context.open(settings)
    train_production(context, seed=0)
    release_processes()
    with session(context.engine) as s:
        _, token = api_keys.create_key(s, name="operator", scopes=api_keys.SCOPES, now=context.now(), key_id="operator")
        s.commit()
    (folder / "operator.key").write_text(token)
    context.engine.dispose()
    return settings


def people(settings: Settings, split: str = "train") -> list[str]:
    """User ids of a split, sorted."""
    return sorted({row.user_id for row in read_metadata(settings.data_folder) if row.split == split})


def _name_uniquely(folder: Path) -> None:
    """People and files get random names; ten age groups become two classes, which few people suffice to learn."""
    table = folder / METADATA
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["user_id"]: f"person-{secrets.token_hex(8)}" for row in rows}
    middle = sorted({row["label"] for row in rows})[4]
    for row in rows:
        original = folder / row["file_name"]
        renamed = original.with_name(f"{secrets.token_hex(8)}{original.suffix}")
        original.rename(renamed)
        row["file_name"] = renamed.relative_to(folder).as_posix()
        row["user_id"] = names[row["user_id"]]
        row["label"] = "young" if row["label"] <= middle else "old"
    copies = folder / "copies"  # which no row names
    copies.mkdir()
    for user_id in names.values():
        image = folder / next(row["file_name"] for row in rows if row["user_id"] == user_id)
        shutil.copy(image, copies / secrets.token_hex(8))
    for left in sorted(path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())):
        left.rmdir()
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
