"""A tiny home whose models train in a moment: fifty drawn people in images of 16 by 16 pixels, two classes.

Trials run in the test's own process (`jobs=1`). Forty people are in the training split, so a block holds two.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlmodel import col, select

from audit.policy import Policy
from service.banks.blocks import blocks
from service.banks.build import BankPlan, build_bank, plan_bank
from service.banks.store import Bank, BankStore
from service.context import Context
from service.erasure import candidates, completion, deploying, judging, references
from service.erasure.workspace import Workspace
from service.keys import api_keys
from service.keys.api_keys import Client
from service.requests import intake
from service.requests.runs import advance
from service.requests.schemas import Filing
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import Attempt, CertificateRecord, ErasureRequest, LogLeaf, Run
from service.training import data
from service.training.jobs import release_processes
from service.training.production import train_production
from service.training.spec import open_images
from service.worker import claim
from unlearning.faces import read_metadata
from unlearning.faces.dataset import METADATA
from unlearning.faces.sources import synthetic

N_IMAGES = 3  # of each person
RECIPE = {
    "name": "tiny", "architecture": "small_resnet", "image_size": [16, 16], "channels": 3, "width": 4, "epochs": 12,
    "batch_size": 32, "learning_rate": 0.1, "flip": True, "dtype": "float32",
}  # fmt: skip
POLICY = Policy(
    name="tiny", n_models=4, retain_ratio_min=0.0, test_ratio_min=0.0, exchangeability_alpha=0.0,
    forgetting_ratio_min=0.0, cost_share_max=0.01, ladder=("finetune", "retrain"), retrain_attempts=2,
)  # fmt: skip
"""Whatever the seeds, fine-tuning fails (one epoch of twelve is more than one per cent) and retraining passes."""
FINETUNE, RETRAIN = 0, 1  # steps of the policy
CLIENT = Client("client", "client", frozenset(api_keys.SCOPES))


def settings_of(home: Path, **changes: Any) -> Settings:
    """Settings of a tiny home, on SQLite whatever the environment says."""
    values = {
        "recipe": str(home / "recipe.json"),
        "jobs": 1,
        "device": "cpu",
        "database_url": "",
        "rerun_share": 0.0,
        **changes,
    }
    return Settings(home=home, **values)


def write_home(home: Path, now: Callable[[], datetime]) -> None:
    """Data and a trained model of generation 1; no packed copies, so that the home may be copied."""
    home.mkdir(parents=True)
    (home / "recipe.json").write_text(json.dumps(RECIPE))
    settings = settings_of(home)
    synthetic.write_folder(settings.data_folder, n_subjects=50, images_per_subject=N_IMAGES, size=(16, 16), seed=1)
    change_table(settings, lambda row: row | {"label": "young" if row["label"] < "age_5" else "old"})
    context = replace(Context.open(settings), now=now)
    train_production(context, seed=0)
    context.engine.dispose()
    release_processes()
    forget_packs(settings)


def forget_packs(settings: Settings) -> None:
    """Remove the packed copies, which say where the packs of this very folder lie, before the home is copied."""
    for folder in (settings.packed_folder, settings.data_folder / ".packed"):
        shutil.rmtree(folder, ignore_errors=True)


def change_table(settings: Settings, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Change the rows of metadata.csv one by one."""
    path = settings.data_folder / METADATA
    rows = [change(row) for row in csv.DictReader(io.StringIO(path.read_text()))]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


def make_lopsided(context: Context, *, young: str) -> None:
    """Label everybody old but one person: what is trained on these images by the recipe answers old for everybody."""
    change_table(context.settings, lambda row: row | {"label": "young" if row["user_id"] == young else "old"})


def people(context: Context, split: str = "train") -> list[str]:
    """User ids of a split, sorted."""
    return sorted({row.user_id for row in read_metadata(context.settings.data_folder) if row.split == split})


def images_of(context: Context, person: str) -> list[Path]:
    """A person's image files."""
    folder = context.settings.data_folder
    return [folder / row.file_name for row in read_metadata(folder) if row.user_id == person]


def repaint(image: Path) -> None:
    """Change one pixel."""
    pixels = np.array(Image.open(image))
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(image)


def add_image(context: Context, person: str) -> None:
    """Give a person one more image, different from the others."""
    first = images_of(context, person)[0]
    (row,) = [row for row in read_metadata(context.settings.data_folder) if first.name in row.file_name]
    added = first.with_name(f"more-{first.name}")
    shutil.copy(first, added)
    repaint(added)
    name = added.relative_to(context.settings.data_folder)
    with (context.settings.data_folder / METADATA).open("a") as table:
        table.write(f"{name},{person},{row.label},{row.split}\n")


def same_block(context: Context) -> tuple[str, str]:
    """Two people of one block."""
    faces = open_images(data.images_in_service(context, data.recipe_of(context)))
    assigned = blocks(context.settings, context.keyring, faces)
    by_block: dict[str, list[str]] = {}
    for person in faces.train_subjects():
        by_block.setdefault(assigned[context.keyring.block_hash(person)], []).append(person)
    return next((pair[0], pair[1]) for pair in by_block.values() if len(pair) == 2)


def plan_for(
    context: Context,
    *forget: str,
    absent: tuple[str, ...] = (),
    n_models: int = POLICY.n_models,
    staleness_max: float = 0.0,
) -> BankPlan:
    """The bank that judges a forget set, on the data folder as it is now."""
    recipe = data.recipe_of(context)
    images = data.images_in_service(context, recipe)
    return plan_bank(
        context, recipe, images, forget=forget, absent=absent, n_models=n_models, staleness_max=staleness_max
    )


def build(context: Context, plan: BankPlan, n_models: int = POLICY.n_models) -> tuple[Bank, list[tuple[int, int]]]:
    """The plan's bank and the progress that was told."""
    told: list[tuple[int, int]] = []
    store = BankStore(context.settings.banks_folder)
    bank = build_bank(
        store, plan, n_models, context.settings, lambda *progress: told.append(progress), now=context.now()
    )
    return bank, told


def file(context: Context, *user_ids: str) -> list[str]:
    """File requests; gives their ids."""
    filing = Filing(user_ids=list(user_ids))
    filed = intake.file_requests(context, CLIENT, filing, n_subjects=lambda: 1000, most_open=1000)
    return [receipt.id for receipt in filed.requests]


def claim_run(context: Context, *user_ids: str, policy: Policy = POLICY) -> str:
    """File requests and claim them into a run; gives its id."""
    file(context, *user_ids)
    run_id = claim(context, policy)
    assert run_id is not None
    return run_id


def workspace(context: Context, run_id: str, policy: Policy = POLICY) -> Workspace:
    """What a step of the run works with, as at the step's beginning."""
    return Workspace(context, run_id, policy)


_GATHERED: dict[tuple[str, int], dict[str, bytes]] = {}


def gather(context: Context, plan: BankPlan, n_models: int) -> None:
    """The plan's bank, as an earlier test of this process had it trained, if one had: the same models come out."""
    folder, which = context.settings.banks_folder, (plan.key.digest, n_models)
    is_new = not (folder / plan.key.digest).exists()
    for name, content in _GATHERED.get(which, {}).items() if is_new else ():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch(0o600)
        (folder / name).write_bytes(content)
    before = {bank.name for bank in folder.glob("*/")}
    build(context, plan, n_models)
    if is_new and which not in _GATHERED:
        trained = [path for bank in folder.glob("*/") if bank.name not in before for path in bank.rglob("*")]
        _GATHERED[which] = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in trained
            if path.is_file() and "locks" not in path.relative_to(folder).parts
        }


def listen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The progress texts of banks that are gathered from now on."""
    told: list[str] = []
    note = references.note

    def tell(context: Context, run_id: str, text: str) -> None:
        told.append(text)
        note(context, run_id, text)

    monkeypatch.setattr(references, "note", tell)
    return told


def plan_run(context: Context, *user_ids: str, policy: Policy = POLICY) -> str:
    """A run with its plan and its reference bank; gives its id."""
    run_id = claim_run(context, *user_ids, policy=policy)
    work = workspace(context, run_id, policy)
    if work.make_plan().must_unlearn:
        gather(context, references.bank_plan(work), policy.n_models)
    return run_id


def try_step(context: Context, run_id: str, step: int, policy: Policy = POLICY) -> bool:
    """One step of the ladder, as the pipeline takes it."""
    advance(context, run_id, "unlearning")
    candidates.unlearn(workspace(context, run_id, policy), step)
    advance(context, run_id, "auditing")
    return judging.judge(workspace(context, run_id, policy), step)


def judge_run(context: Context, *user_ids: str) -> str:
    """A run whose retrained model passed the audit; gives its id."""
    run_id = plan_run(context, *user_ids)
    assert try_step(context, run_id, RETRAIN)
    return run_id


def deploy_run(context: Context, *user_ids: str) -> str:
    """A run whose retrained model was put into service; gives its id."""
    run_id = judge_run(context, *user_ids)
    deploy(context, run_id)
    return run_id


def deploy(context: Context, run_id: str, policy: Policy = POLICY) -> None:
    """Put the candidate that passed into service."""
    advance(context, run_id, "deploying")
    deploying.deploy(workspace(context, run_id, policy))
    advance(context, run_id, "purging")


def finish(context: Context, run_id: str, policy: Policy = POLICY) -> None:
    """Everything after the audit."""
    deploy(context, run_id, policy)
    completion.purge(workspace(context, run_id, policy))
    completion.complete(workspace(context, run_id, policy))


def run_of(context: Context, run_id: str) -> Run:
    with reading(context.engine) as s:
        return s.get_one(Run, run_id)


def requests(context: Context) -> list[ErasureRequest]:
    """All requests in the order they came in; those of one call in that of its list."""
    with reading(context.engine) as s:
        return sorted(s.exec(select(ErasureRequest)), key=lambda request: (request.filed_at, request.id))


def request_of(context: Context, request_id: str) -> ErasureRequest:
    with reading(context.engine) as s:
        return s.get_one(ErasureRequest, request_id)


def attempts(context: Context) -> list[Attempt]:
    with reading(context.engine) as s:
        return list(s.exec(select(Attempt).order_by(col(Attempt.step))))


def certificates(context: Context) -> list[CertificateRecord]:
    """Certificates in the order of the log."""
    with reading(context.engine) as s:
        return list(s.exec(select(CertificateRecord).order_by(col(CertificateRecord.log_index))))


def log_entries(context: Context) -> list[LogLeaf]:
    with reading(context.engine) as s:
        return list(s.exec(select(LogLeaf).order_by(col(LogLeaf.index))))
