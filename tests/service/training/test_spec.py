from __future__ import annotations

import subprocess
import sys

import pytest

from service.training.data import pack_images, recipe_of
from service.training.spec import open_images
from tests.service import tiny

PURGE = """
import sys
from pathlib import Path

import numpy as np

from service.banks.store import BankStore, ReferenceRow
from service.banks.build import plan_bank
from service.banks.blocks import forget_from_blocks
from service.context import Context
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.spec import open_images
from service.settings import Settings
from unlearning.faces import remove_subjects
from unlearning.faces.sources import synthetic

settings = Settings(home=Path(sys.argv[1]), recipe="synthetic_small", database_url="")
synthetic.write_folder(settings.data_folder, n_subjects=10, images_per_subject=2, size=(32, 32), seed=1)
context = Context.open(settings)
recipe = recipe_of(context)
images = images_in_service(context, recipe)
faces = open_images(images)
person = faces.train_subjects()[0]
plan = plan_bank(context, recipe, images, forget=[person], absent=asked_to_go(context, faces), n_models=1)
store = BankStore(settings.banks_folder)
store.begin(plan.key, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=1, now=context.now())
margins = np.zeros((plan.key.n_views, len(plan.tags)), np.float32)
store.add(plan.key, ReferenceRow(0, plan.example_ids, margins, 0.9, 0.9, 1.0))
assert store.find(plan_bank(context, recipe, images, forget=[person], n_models=1).key, n_models=1) is not None
tag = context.keyring.block_hash(person)
assert store.drop_subject(tag) == 2
forget_from_blocks(settings, [tag])
assert remove_subjects(settings.data_folder, [person]).n_images == 2
print("torch" in sys.modules)
"""


@pytest.mark.slow
def test_nothing_from_packing_to_purging_loads_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PURGE, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_what_was_packed_is_open_and_no_file_is_read_again(tiny_context):
    open_images.cache_clear()
    images = pack_images(tiny_context.settings, recipe_of(tiny_context))
    tiny.images_of(tiny_context, tiny.people(tiny_context)[0])[0].unlink()
    assert open_images(images).manifest_digest == images.manifest_digest
