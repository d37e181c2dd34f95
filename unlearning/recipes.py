"""Recipes: everything that determines a training run but data and seed.

A recipe is frozen and has a digest, so that weights, banks of references and certificates can name it. If it starts
from given weights, so do all models trained by it, references and exact retraining included; nothing removes what those
weights learned of a subject.
"""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from unlearning.errors import RecipeError
from unlearning.factories import is_from_elsewhere, source_of

# Those of `unlearning.models.ARCHITECTURES`, which is not imported here: whoever plans, packs or purges reads recipes
# and has no use for torch and its several hundred megabytes.
ARCHITECTURES = ("eyes_resnet", "resnet18", "small_resnet")
DTYPES = ("auto", "bfloat16", "float32")

_SHA256 = re.compile(r"([0-9a-f]{64})?")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "channels": (1, 3),
    "optimiser": ("sgd", "adam"),
    "schedule": ("one-cycle", "cosine"),
    "flip": (False, True),
    "proportions": ("stretch", "crop", "pad"),
    "dtype": DTYPES,
}
_RANGES: dict[str, tuple[type, float, float]] = {
    "image_size": (int, 8, 1024),
    "width": (int, 1, 1024),
    "epochs": (int, 1, 10_000),
    "batch_size": (int, 2, 65_536),
    "learning_rate": (float, 1e-12, 100.0),
    "momentum": (float, 0.0, 0.9999),
    "weight_decay": (float, 0.0, 1.0),
    "class_weight_power": (float, 0.0, 1.0),
    "warmup_share": (float, 0.0, 0.9),
    "shift": (int, 0, 512),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Options of `unlearning.training.train`; the digest covers every field but the name and the path of the weights.

    Attributes:
        name: human-readable name.
        architecture: see `unlearning.models.build`.
        architecture_source: of a network from elsewhere what code it is made by, `unlearning.factories.source_of`;
            taken from there where it is not given, and refused where it differs.
        width: channels of the first stage (networks from elsewhere have their own).
        image_size: (height, width) in pixels the images are packed at.
        channels: 1 (grey) or 3 (colour).
        proportions: what happens to images of other proportions than `image_size`: "stretch", "crop" (the middle is cut
            out) or "pad" (the whole image, white around it).
        epochs: passes over the data.
        batch_size: examples a step; the examples of an epoch are split evenly over ceil(n / batch_size) steps.
        optimiser: "sgd" (Nesterov momentum) or "adam" (weight decay added to the gradient, as the competition's).
        schedule: "one-cycle" (linear up over `warmup_share` of the steps, then cosine to 0) or "cosine" (no warm-up).
        learning_rate: the highest of the schedule.
        momentum: of SGD; Adam's first moment uses it too.
        weight_decay: on weights of convolutions and linear layers, never on biases and norms.
        class_weight_power: class weights are counts^-power with mean 1 over the examples; 0 turns them off.
        warmup_share: share of the steps in which "one-cycle" rises.
        shift: largest shift in pixels of the augmentation, each direction; 0 turns it off.
        flip: mirror half of the images left to right.
        weights: safetensors file training starts from, none for random weights. A classifier for another number of
            classes is drawn anew. In a recipe's file the path starts from that file's folder. Not in the digest.
        weights_sha256: SHA-256 (hex) the file must have; required with `weights`.
        dtype: arithmetic of forward and backward pass, "auto", "bfloat16" or "float32"; weights are float32 always.
    """

    name: str
    architecture: str
    image_size: tuple[int, int]
    channels: int = 1
    width: int = 16
    epochs: int = 20
    batch_size: int = 64
    optimiser: str = "sgd"
    schedule: str = "one-cycle"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    class_weight_power: float = 0.0
    warmup_share: float = 0.2
    shift: int = 0
    flip: bool = False
    dtype: str = "auto"
    weights: str = ""
    weights_sha256: str = ""
    architecture_source: str = ""
    proportions: str = "stretch"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise RecipeError(f"Expected a recipe's name as a word, got {self.name!r}.")
        if not isinstance(self.architecture, str) or not _known_architecture(self.architecture):
            raise self._wrong(f"unknown architecture {self.architecture!r}")
        self._take_source()
        if not isinstance(self.image_size, tuple | list) or len(self.image_size) != 2:
            raise self._wrong(f"expected image_size (height, width), got {self.image_size!r}")
        object.__setattr__(self, "image_size", tuple(self._number("image_size", s, int) for s in self.image_size))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices or type(getattr(self, name)) is not type(choices[0]):
                raise self._wrong(f"expected {name} in {choices}, got {getattr(self, name)!r}")
        for name, (kind, _, _) in _RANGES.items():
            if name != "image_size":
                object.__setattr__(self, name, self._number(name, getattr(self, name), kind))
        if not (isinstance(self.weights, str) and isinstance(self.weights_sha256, str)):
            raise self._wrong("expected weights and weights_sha256 as texts")
        if bool(self.weights) != bool(self.weights_sha256) or not _SHA256.fullmatch(self.weights_sha256):
            raise self._wrong(
                f"expected weights={self.weights!r} with their SHA-256, 64 hex digits, in weights_sha256, "
                f"got {self.weights_sha256!r}"
            )
        if 2 * self.shift > min(self.image_size):
            raise self._wrong(f"expected shift={self.shift} of at most half the image's shorter side")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over every option but names of recipe and file, as canonical JSON."""
        options = dataclasses.asdict(self)
        del options["name"], options["weights"]
        if not self.weights_sha256:
            del options["weights_sha256"]  # so that recipes without it keep the digest they had before there was one
        if not self.architecture_source:
            del options["architecture_source"]  # as well
        if self.proportions == "stretch":
            del options["proportions"]  # as well
        canonical = json.dumps(options, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain JSON values; `load_recipe` reads them back."""
        options = dataclasses.asdict(self)
        options["image_size"] = list(self.image_size)
        return options

    def _take_source(self) -> None:
        """Fills in by what code the architecture is made, or compares it with what is given."""
        try:
            found = source_of(self.architecture)
        except RecipeError as error:
            raise RecipeError(f"Recipe {self.name!r}: {error}") from error
        if self.architecture_source not in ("", found):
            raise self._wrong(
                f"expected {self.architecture} with architecture_source {self.architecture_source!r}, found {found!r}"
            )
        object.__setattr__(self, "architecture_source", found)

    def _number(self, name: str, value: Any, kind: type) -> Any:
        """Returns the value as `kind`; a digest must not depend on whether 1 or 1.0 was written."""
        _, low, high = _RANGES[name]
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not (fits and math.isfinite(value) and low <= value <= high):
            raise self._wrong(f"expected {name}={value!r} as {kind.__name__} in [{low}, {high}]")
        return kind(value)

    def _wrong(self, sentence: str) -> RecipeError:
        return RecipeError(f"Recipe {self.name!r}: {sentence}.")


def _known_architecture(architecture: str) -> bool:
    if architecture in ARCHITECTURES or is_from_elsewhere(architecture):
        return True
    from unlearning.models import known_architecture  # one of torchvision's, if it is one

    return known_architecture(architecture)


# Those of the AT&T faces were chosen by cross-validation over their 32 training people, people left out together
# (`benchmarks/reference_speed.py --thorough`); the test people had no part in it. The one of CASIA-SURF has the values
# of the NeurIPS 2023 unlearning competition.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("att_small", "eyes_resnet", image_size=(64, 52), width=16, epochs=20, shift=3, flip=True),
        Recipe(
            "att_resnet18",
            "resnet18",
            image_size=(64, 64),
            epochs=12,
            batch_size=32,
            optimiser="adam",
            learning_rate=1e-3,
            shift=3,
            flip=True,
        ),
        Recipe("synthetic_small", "small_resnet", image_size=(32, 32), channels=3, epochs=20, shift=2, flip=True),
        Recipe(
            "synthetic_resnet18",
            "resnet18",
            image_size=(32, 32),
            channels=3,
            epochs=12,
            optimiser="adam",
            learning_rate=1e-3,
            shift=2,
            flip=True,
        ),
        Recipe(
            "casia_surf_resnet18",
            "resnet18",
            image_size=(32, 32),
            channels=3,
            epochs=30,
            batch_size=64,
            optimiser="adam",
            schedule="cosine",
            learning_rate=1e-4,
            weight_decay=5e-3,
            class_weight_power=1.0,
        ),
    )
}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Returns a recipe of `RECIPES` by name, or one from a JSON file of options.

    Raises:
        RecipeError: no such name or file, not JSON, an unknown, missing or wrong option.
    """
    if isinstance(name_or_path, str) and name_or_path in RECIPES:
        return RECIPES[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise RecipeError(f"Unknown recipe {str(name_or_path)!r}. Expected one of {sorted(RECIPES)} or a JSON file.")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecipeError(f"Recipe file {path.name} is not readable JSON: {error}.") from error
    recipe = recipe_from_dict(options)
    return dataclasses.replace(recipe, weights=str(path.parent / recipe.weights)) if recipe.weights else recipe


def recipe_from_dict(options: object) -> Recipe:
    """Returns the recipe of plain JSON values as `Recipe.to_dict` wrote them.

    Raises:
        RecipeError: not an object, or an unknown, missing or wrong option.
    """
    if not isinstance(options, dict):
        raise RecipeError(f"Expected a recipe as a JSON object of options, got {type(options).__name__}.")
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(Recipe)})
    if unknown:
        raise RecipeError(f"Unknown recipe options {unknown}.")
    try:
        return Recipe(**options)
    except TypeError as error:
        raise RecipeError(f"Recipe with wrong or missing options: {error}.") from error
