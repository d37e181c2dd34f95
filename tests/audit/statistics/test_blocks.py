from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import OptionError
from audit.statistics.blocks import assign_blocks


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 400), share=st.floats(0.001, 1))
def test_blocks_are_small_even_and_settled_by_the_hashes(n: int, share: float) -> None:
    hashes = [sha256(str(i).encode()).hexdigest() for i in range(n)]
    blocks = assign_blocks(hashes, share=share)
    assert blocks.keys() == set(hashes)
    assert blocks == assign_blocks(reversed(hashes), share=share)
    sizes = np.bincount(list(blocks.values())) if n else np.zeros(0, int)
    if n:
        assert sizes.max() <= max(1, int(share * n))
        assert sizes.max() - sizes.min() <= 1
        assert [blocks[h] for h in sorted(hashes)] == sorted(blocks.values())


def test_a_few_people_are_blocks_of_their_own() -> None:
    assert sorted(assign_blocks(f"h{i}" for i in range(32)).values()) == list(range(32))


def test_a_share_of_nobody_is_refused() -> None:
    with pytest.raises(OptionError, match="share"):
        assign_blocks(["a"], share=0)
