from __future__ import annotations

import json
from functools import partial

import pytest

from service.banks.blocks import blocks, forget_from_blocks
from service.errors import DataFolderError
from tests.service.banks.test_build import faces_of
from tests.waiting import at_once


def test_two_processes_that_settle_blocks_at_once_agree(context):
    settled = []

    def settle(n):
        settled.append(blocks(context.settings, context.keyring, faces_of(n)))

    at_once(*(partial(settle, n) for n in [40, 60] * 8))
    assert len(settled) == 16
    last = json.loads((context.settings.banks_folder / "blocks.json").read_text())
    for known in settled:
        assert {tag: last[tag] for tag in known} == known


def test_an_erasure_beside_a_new_person_loses_neither(context):
    before = blocks(context.settings, context.keyring, faces_of(40))
    gone = sorted(before)[:20]
    erasures = [partial(forget_from_blocks, context.settings, [tag]) for tag in gone]
    at_once(*erasures, lambda: blocks(context.settings, context.keyring, faces_of(60)))
    last = json.loads((context.settings.banks_folder / "blocks.json").read_text())
    assert last.keys() >= before.keys() - set(gone)
    forget_from_blocks(context.settings, gone)
    last = json.loads((context.settings.banks_folder / "blocks.json").read_text())
    assert len(last) == 40
    assert not last.keys() & set(gone)


def test_a_damaged_block_list_is_an_error_that_says_what_to_do(context):
    blocks(context.settings, context.keyring, faces_of(4))
    (context.settings.banks_folder / "blocks.json").write_text("{")
    with pytest.raises(DataFolderError, match="Take it away"):
        blocks(context.settings, context.keyring, faces_of(4))
