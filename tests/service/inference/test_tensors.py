"""Tensors taken out of a safetensors file: the library's own bytes give the same arrays, anything else is refused."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import safetensors.numpy

from service.inference.tensors import Tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "large": RNG.normal(size=(3, 5, mmap.PAGESIZE)).astype(np.float32),
    "half": RNG.normal(size=(7, 2)).astype(np.float16),
    "double": RNG.normal(size=3),
    "count": np.array(12),
    "none": np.zeros((0, 4), np.float32),
}


def in_pages(content: bytes) -> mmap.mmap:
    pages = mmap.mmap(-1, len(content), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages[:] = content
    return pages


@pytest.mark.parametrize("kept", [bytes, in_pages])
@pytest.mark.parametrize("order", [1, -1])
def test_each_is_what_the_library_saved(kept, order):
    tensors = Tensors(kept(safetensors.numpy.save(ARRAYS, metadata={"format": "np"})))
    assert set(tensors.names()) == set(ARRAYS)
    for name in list(ARRAYS)[::order]:
        assert tensors.shape(name) == list(ARRAYS[name].shape)
        taken = tensors.take(name)
        assert taken.dtype == np.float32
        np.testing.assert_array_equal(taken, ARRAYS[name].astype(np.float32))
    assert tensors.names() == []


def test_pages_of_what_was_taken_are_given_back():
    content = in_pages(safetensors.numpy.save(ARRAYS))
    tensors = Tensors(content)
    whole = content[:].count(0)
    tensors.take("large")
    assert content[:].count(0) > whole + ARRAYS["large"].nbytes - 3 * mmap.PAGESIZE
    np.testing.assert_array_equal(tensors.take("half"), ARRAYS["half"])


def test_a_view_of_pages_outlives_them():
    tensors = Tensors(in_pages(safetensors.numpy.save(ARRAYS)))
    taken = tensors.take("large")
    tensors.close()
    np.testing.assert_array_equal(taken, ARRAYS["large"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"not safetensors", "codec|Expecting value"),
        ((2).to_bytes(8, "little") + b"[]", "a header that is none"),
        ((9).to_bytes(8, "little") + b'{"a": [1}', "Expecting"),
        (safetensors.numpy.save({"a": np.array([True])}), "tensors of BOOL"),
    ],
)
def test_other_bytes_are_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        Tensors(content)
