from __future__ import annotations

import struct
import subprocess
import sys

from service.models.commit_word import CommitWord
from tests.waiting import PATIENCE_SECONDS


def test_a_new_word_is_zero_and_only_grows(tmp_path):
    with CommitWord(tmp_path / "folder" / "word") as word:
        assert word.read() == 0
        word.advance(7)
        word.advance(5)
        assert word.read() == 7


def test_the_word_stays_in_its_eight_bytes(tmp_path):
    path = tmp_path / "word"
    with CommitWord(path) as word:
        word.advance(2**40 + 3)
    assert path.read_bytes() == struct.pack("=Q", 2**40 + 3)
    with CommitWord(path) as word:
        assert word.read() == 2**40 + 3


def test_other_processes_see_it_at_once(tmp_path):
    path = tmp_path / "word"
    with CommitWord(path) as word:
        program = (
            "import sys; from pathlib import Path; from service.models.commit_word import CommitWord; "
            "CommitWord(Path(sys.argv[1])).advance(9)"
        )
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=PATIENCE_SECONDS)
        assert word.read() == 9
