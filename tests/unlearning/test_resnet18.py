"""ResNet-18 beside torchvision's: the same weights of a seed, the same answers and gradients, and nothing imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision

from tests.waiting import PATIENCE_SECONDS
from unlearning.models import build
from unlearning.resnet18 import ResNet18


def drawn(make, seed: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


@pytest.mark.parametrize("training", [False, True])
def test_weights_answers_and_gradients_are_torchvisions(training):
    ours = drawn(lambda: ResNet18(7), 3).train(training)
    theirs = drawn(lambda: torchvision.models.resnet18(weights=None, num_classes=7), 3).train(training)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    images = drawn(lambda: torch.randn(4, 3, 64, 64), 5)
    answers = [model(images) for model in (ours, theirs)]
    torch.testing.assert_close(*answers, rtol=0, atol=0)
    for logits in answers:
        logits.square().sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    for name, tensor in theirs.state_dict().items():  # the norms' statistics too
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)


def test_grey_images_get_a_first_layer_of_their_own():
    assert drawn(lambda: build("resnet18", 3, channels=1), 0).conv1.weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize("architecture", ["resnet18", "small_resnet", "eyes_resnet"])
def test_a_process_that_serves_it_imports_neither_torchvision_nor_the_compiler(architecture):
    program = f"""
import sys
from unlearning.models import build_empty
build_empty("{architecture}", 3, channels=1, width=16)
sys.exit(str({{"torchvision", "torch._dynamo", "sympy"}} & set(sys.modules) or ""))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert not done.stderr.strip()
