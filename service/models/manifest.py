"""What weights are and where they come from. Tested in `tests/service/models/test_registry.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from service import __version__


def library_versions() -> dict[str, str]:
    """Versions that manifests and certificates name."""
    return {"expunge": __version__} | {name: version(name) for name in ("torch", "torchvision", "numpy")}


@dataclass(frozen=True)
class Manifest:
    """What weights are and where they come from; everything a process needs to rebuild the model around them.

    Attributes:
        architecture, width, channels: arguments of `unlearning.models.build`.
        architecture_source: what code a network from elsewhere is made by, `unlearning.factories.source_of`.
        image_size: (height, width) in pixels.
        proportions: what happens to images of other proportions, as in the recipe.
        classes: names in the order of the model's outputs.
        recipe, recipe_digest: name and SHA-256 of the training recipe.
        data_manifest_digest: SHA-256 of the data trained on.
        seed: of the training.
        versions: of the libraries that trained, by name.
        lineage: how the weights came to be: method, parent's digest, run.
        network: SHA-256 of the converted network (`service.models.networks`); empty where there is none.
    """

    architecture: str
    width: int
    channels: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    recipe: str
    recipe_digest: str
    data_manifest_digest: str
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    architecture_source: str = ""
    proportions: str = "stretch"
    network: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"Expected image_size={self.image_size} as (height, width) of at least 1 pixel.")
        if self.channels not in {1, 3}:
            raise ValueError(f"Expected channels={self.channels} to be 1 (grey) or 3 (colour).")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"Expected at least two classes, each once, got {list(self.classes)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {**asdict(self), "image_size": list(self.image_size), "classes": list(self.classes)}
        for name, usual in (("architecture_source", ""), ("proportions", "stretch"), ("network", "")):
            if values[name] == usual:
                del values[name]  # so that manifests without it keep the digest they had before there was one
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Manifest of plain JSON values.

        Raises:
            TypeError: a name is missing or unknown.
            ValueError: a value is out of range.
        """
        return cls(**values)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        canonical = json.dumps(
            self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()
