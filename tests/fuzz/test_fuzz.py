"""A slice of `make fuzz`, and properties of the decoder on anything at all."""

from __future__ import annotations

import random
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import corpus, mutated
from tests.fuzz.trial import attempt
from tests.waiting import PATIENCE_SECONDS


def test_whole_images_decode_and_damaged_ones_are_refused_in_time_and_space() -> None:
    files = corpus()
    assert sum(attempt(content).decoded for content in files) == len(files) - 1  # not the one of 16 bits a channel
    trials = [attempt(mutated(random.Random(f"slice {number}"), files)) for number in range(1_500)]
    assert [trial.complaint for trial in trials if trial.complaint] == []
    assert 0.05 < sum(trial.decoded for trial in trials) / len(trials) < 0.95  # damage is neither fatal nor harmless


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8 ")),
)
def test_any_bytes_are_an_image_or_an_error_of_ours(content: bytes, head: bytes) -> None:
    assert attempt(head + content).complaint is None


def test_the_largest_images_stay_within_200_mb() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--large"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    complaints = [line for line in done.stdout.splitlines() if '"complaint": null' not in line]
    assert done.stdout
    assert complaints == []
