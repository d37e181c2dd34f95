"""Synthetic banks shared by the audit's tests."""

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """Margins `(n_models, n_examples)` of models that share part of their luck over a subject's examples."""

    def draw(
        rng: np.random.Generator,
        n_models: int,
        n_examples: int,
        *,
        shift: float = 0.0,
        spread: float = 1.0,
        dependence: float = 0.5,
    ) -> np.ndarray:
        common, own = rng.normal(size=(n_models, 1)), rng.normal(size=(n_models, n_examples))
        noise = np.sqrt(dependence) * common + np.sqrt(1 - dependence) * own
        return np.linspace(2.0, 5.0, n_examples) + 1.5 * (shift + spread * noise)

    return draw
