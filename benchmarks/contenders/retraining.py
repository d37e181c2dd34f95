"""Plain retraining: a program that trains a recipe once on everybody but those named on its standard input, and ends.

    python -m benchmarks.contenders.retraining DATA_FOLDER RECIPE SEED WEIGHTS < NAMES

Prints the processor seconds that the training alone took; the rest of the process is Python, torch and the images.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: the arithmetic of the service's trainings

import time
from pathlib import Path

import torch

from unlearning.faces import pack
from unlearning.models import save_weights
from unlearning.recipes import RECIPES
from unlearning.training import Examples, train


def main() -> None:
    """As a process of its own; see the module."""
    folder, recipe, seed, weights = Path(sys.argv[1]), RECIPES[sys.argv[2]], int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    faces = pack(folder, size=recipe.image_size, channels=recipe.channels)
    rows = faces.where(split="train", without=sys.stdin.read().split())
    data = Examples.from_arrays(faces.images[rows], faces.labels[rows])
    began = time.process_time()
    trained = train(recipe, data, n_classes=len(faces.classes), seed=seed, device=torch.device("cpu"))
    took = time.process_time() - began
    save_weights(trained.model, weights)
    print(took)


if __name__ == "__main__":
    main()
