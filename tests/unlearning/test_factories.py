"""Networks from elsewhere: made by name, tied to the code that makes them, refused with a sentence."""

import dataclasses
import importlib
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from unlearning import factories
from unlearning.errors import ExitedError, RecipeError
from unlearning.factories import make, require_source, source_of
from unlearning.models import build, build_empty, load_weights, save_weights
from unlearning.recipes import Recipe, load_recipe
from unlearning.running import unlearn
from unlearning.training import Examples, fresh_model, logits, train

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_classes, channels):
        super().__init__()
        self.register_buffer("scale", torch.tensor(SCALE), persistent=False)
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.fc = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x * self.scale)).mean(dim=(2, 3)))

def build(n_classes, channels):
    return Net(n_classes, channels)

def wrong_shape(n_classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, n_classes + 1))

def no_network(n_classes, channels):
    return "a network"

def bare(n_classes, channels):
    return nn.Flatten()

def fails(n_classes, channels):
    raise KeyError("depth")

def exits(n_classes, channels):
    raise SystemExit(0)

class ExitsInTraining(Net):
    def forward(self, x):
        if self.training:
            raise SystemExit(0)
        return super().forward(x)

class Exits(Net):
    def forward(self, x):
        raise SystemExit(0)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module `own_nets` and forgets what this process knew of it, as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(scale: str = "0.5") -> None:
        (tmp_path / "own_nets.py").write_text(MODULE.replace("SCALE", scale))
        forget()

    def forget() -> None:
        sys.modules.pop("own_nets", None)
        importlib.invalidate_caches()
        source_of.cache_clear()

    write()
    yield write
    forget()


def recipe(architecture: str = "own_nets:build", **options) -> Recipe:
    return Recipe("own", architecture, image_size=(16, 12), epochs=2, batch_size=16, **options)


def faces(n: int = 32) -> Examples:
    images = torch.randint(256, (n, 1, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Examples(images, torch.arange(n) % 2)


class TestFactory:
    def test_a_model_of_it_is_trained_saved_and_loaded(self, module, tmp_path):
        trained = train(recipe(), faces(), n_classes=2, seed=0, device="cpu").model
        digest = save_weights(trained, tmp_path / "model.safetensors")
        again = load_weights(fresh_model(recipe(), 2), tmp_path / "model.safetensors", digest=digest)
        np.testing.assert_allclose(logits(again, faces().images), logits(trained, faces().images), atol=1e-5)

    def test_the_digest_of_a_recipe_changes_with_the_source(self, module):
        before = recipe()
        module("0.25")
        assert recipe().digest != before.digest
        assert recipe().architecture_source != before.architecture_source

    def test_a_package_counts_with_every_file_in_it(self, module, tmp_path):
        (tmp_path / "own_nets.py").rename(tmp_path / "parts.py")
        package = tmp_path / "own_nets"
        package.mkdir()
        (package / "__init__.py").write_text("from own_nets.layers import build")
        (package / "layers.py").write_text((tmp_path / "parts.py").read_text().replace("SCALE", "0.5"))
        source_of.cache_clear()
        before = source_of("own_nets:build")
        (package / "layers.py").write_text((package / "layers.py").read_text() + "\n# another line\n")
        source_of.cache_clear()
        assert source_of("own_nets:build") != before

    def test_code_that_changed_since_the_recipe_was_read_builds_nothing(self, module):
        read = recipe()
        module("0.25")
        with pytest.raises(RecipeError, match="as it was trained with"):
            fresh_model(read, 2)
        with pytest.raises(RecipeError, match="as it was trained with"):
            train(read, faces(), n_classes=2, seed=0, device="cpu")

    def test_a_recipe_s_file_may_tie_itself_to_the_source(self, module, tmp_path):
        options = recipe().to_dict()
        (tmp_path / "mine.json").write_text(json.dumps(options))
        assert load_recipe(tmp_path / "mine.json") == recipe()
        (tmp_path / "mine.json").write_text(json.dumps({**options, "architecture_source": "sha256:0"}))
        with pytest.raises(RecipeError, match="own_nets:build with architecture_source 'sha256:0', found 'sha256:"):
            load_recipe(tmp_path / "mine.json")

    def test_values_that_are_no_weights_are_there_in_an_empty_model(self, module):
        empty = build_empty("own_nets:build", 2, channels=1, width=1)
        assert float(empty.scale) == 0.5

    @pytest.mark.parametrize(
        ("architecture", "sentence"),
        [
            ("no_such_module:build", "Expected a Python module no_such_module, found none; install it"),
            ("no_such_package.models:build", "Expected a Python module no_such_package.models, found none; install it"),
            ("own_nets:", "Expected an architecture like mypackage.models:build"),
            ("math:sqrt", "Expected Python source of the module math"),
        ],
    )
    def test_a_name_without_a_module_is_refused_with_the_recipe(self, module, architecture, sentence):
        with pytest.raises(RecipeError, match=f"Recipe 'own': {sentence}"):
            recipe(architecture)

    @pytest.mark.parametrize(
        ("function", "sentence"),
        [
            ("absent", "AttributeError"),
            ("fails", "KeyError: 'depth'"),
            ("exits", r"ExitedError: .* called sys\.exit"),
            ("no_network", r"return a torch.nn.Module with parameters, got str"),
            ("bare", r"return a torch.nn.Module with parameters, got Flatten"),
        ],
    )
    def test_a_function_that_gives_no_network_is_refused(self, module, function, sentence):
        with pytest.raises(RecipeError, match=sentence):
            make(f"own_nets:{function}", 2, 1)

    def test_other_outputs_than_logits_are_refused_before_training(self, module):
        with pytest.raises(RecipeError, match=r"give logits of the shape \(1, 2\).*got \(1, 3\)"):
            train(recipe("own_nets:wrong_shape"), faces(), n_classes=2, seed=0, device="cpu")

    def test_a_network_that_exits_is_refused_before_training(self, module):
        with pytest.raises(RecipeError, match=r"called sys\.exit"):
            train(recipe("own_nets:Exits"), faces(), n_classes=2, seed=0, device="cpu")

    def test_a_network_that_exits_in_training_or_unlearning_is_an_error(self, module):
        with pytest.raises(ExitedError, match=r"called sys\.exit"):
            train(recipe("own_nets:ExitsInTraining"), faces(), n_classes=2, seed=0, device="cpu")
        base = make("own_nets:ExitsInTraining", 2, 1)
        with pytest.raises(ExitedError, match=r"called sys\.exit"):
            unlearn("finetune", base, None, faces(), recipe=recipe("own_nets:ExitsInTraining"), seed=0, device="cpu")

    def test_a_module_that_exits_is_refused_with_the_recipe(self, module, tmp_path):
        (tmp_path / "own_package").mkdir()
        (tmp_path / "own_package" / "__init__.py").write_text("raise SystemExit(0)")
        with pytest.raises(RecipeError, match=r"Recipe 'own': Expected to import .*called sys\.exit"):
            recipe("own_package.nets:build")


class TestTimm:
    def test_without_it_the_remedy_is_said(self, monkeypatch):
        def absent(name: str) -> str:
            raise factories.PackageNotFoundError(name)

        monkeypatch.setattr(factories, "version", absent)
        source_of.cache_clear()
        with pytest.raises(RecipeError, match=r"timm:resnet18 needs timm; install expunge\[timm\]"):
            Recipe("own", "timm:resnet18", image_size=(32, 32))

    def test_a_model_of_it_is_trained(self):
        timm = pytest.importorskip("timm", reason="Needs timm: pip install 'expunge[timm]'.")
        source_of.cache_clear()
        small = recipe("timm:test_resnet")
        assert small.architecture_source == f"timm {timm.__version__}"
        assert small.digest != dataclasses.replace(small, architecture="resnet18", architecture_source="").digest
        model = train(small, faces(), n_classes=2, seed=0, device="cpu").model
        assert logits(model, faces().images).shape == (32, 2)
        assert isinstance(build_empty("timm:test_resnet", 2, channels=1, width=1), nn.Module)
        with pytest.raises(RecipeError, match=r"timm:test_vit takes no images of \(16, 12\) pixels"):
            train(recipe("timm:test_vit"), faces(), n_classes=2, seed=0, device="cpu")

    def test_an_unknown_model_and_another_version_are_refused(self):
        timm = pytest.importorskip("timm", reason="Needs timm: pip install 'expunge[timm]'.")
        source_of.cache_clear()
        with pytest.raises(RecipeError, match=r"Expected a model of timm .*, got 'resnet19'"):
            Recipe("own", "timm:resnet19", image_size=(32, 32))
        require_source("timm:resnet18", f"timm {timm.__version__}")
        with pytest.raises(RecipeError, match="Expected timm:resnet18 as it was trained with"):
            require_source("timm:resnet18", "timm 0.1")


def test_networks_that_compute_while_they_are_made_can_be_filled(tmp_path):
    """torchvision's RegNets cannot be laid out without memory, so weights of them could be trained and never served."""
    digest = save_weights(build("regnet_y_400mf", 2), tmp_path / "model.safetensors")
    empty = build_empty("regnet_y_400mf", 2, channels=1, width=1)
    load_weights(empty, tmp_path / "model.safetensors", digest=digest)
    assert not any(parameter.is_meta for parameter in empty.parameters())
