"""The classifiers, the preprocessing of their input, and their weights on disk.

A model takes inputs `(n, channels, height, width)` made by `to_inputs` and returns logits `(n, n_classes)`. Training,
scoring and serving all call `to_inputs`, so images are always preprocessed in the same way. Weights are stored as
safetensors (which cannot contain code) and always float32.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from unlearning import factories, files
from unlearning.errors import RecipeError, WeightsError
from unlearning.resnet18 import ResNet18, draw

PIXEL_MEAN = 127.5
PIXEL_SPREAD = 64.0  # half the range spans two units, about one standard deviation of natural pixels


def to_inputs(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the model's input of uint8 images `(n, channels, height, width)`: same shape, `dtype`, values in [-2, 2].

    The layout is channels-last in memory, which convolutions on CPUs and tensor cores prefer.

    Raises:
        RecipeError: the images are not uint8 or not four-dimensional.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise RecipeError(
            f"Expected images as uint8 (n, channels, height, width), got {images.dtype} {tuple(images.shape)}."
        )
    floats = images.to(dtype).contiguous(memory_format=torch.channels_last)
    return floats.sub_(PIXEL_MEAN).div_(PIXEL_SPREAD)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, as in He et al., arXiv 1512.03385, Fig. 5 left."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return relu(y + self.shortcut(x))


class EyeRegion(nn.Module):
    """What glasses need: the band around the eyes, and of it only what differs from its neighbourhood.

    Takes the rows from 15 to 70 % and the columns from 10 to 90 % of an image in which the face fills the frame, and
    subtracts the mean of each 3×3 neighbourhood (two rows and columns fewer come out). Fine lines stay; light, skin and
    hair, by which a network that has seen few people would know them instead of their glasses, go.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        margin = width * 10 // 100
        x = x[:, :, height * 15 // 100 : height * 70 // 100, margin : width - margin]
        rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]  # sums of slices: torch's pooling takes 20 times as long here
        total = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
        return x[:, :, 1:-1, 1:-1] - total / 9.0


class SmallResNet(nn.Module):
    """A residual network for CPUs: a stem, three stages of one block (width, 2·width, 4·width), mean over the image.

    Any image size from 8×8 up. The stem halves the image, a pooled one quarters it; stages two and three halve it.

    Args:
        region: a module without weights that chooses what the network sees; None for the image as it is.
        pooled: a 5×5 first kernel and the maximum over 2×2 right behind it, a third of the work on larger images.
    """

    def __init__(
        self, n_classes: int, channels: int, width: int, *, region: nn.Module | None = None, pooled: bool = False
    ) -> None:
        super().__init__()
        side = 5 if pooled else 3
        self.region = region or nn.Identity()
        self.stem = nn.Conv2d(channels, width, side, stride=2, padding=side // 2, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pooled else nn.Identity()
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 4 * width, stride=2),
        )
        self.fc = nn.Linear(4 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(self.region(x)))  # (n, width, h/2, w/2), or a quarter if pooled
        x = self.stages(relu(self.norm(x)))  # (n, 4·width, h/8, w/8), or h/16, w/16
        return self.fc(x.mean(dim=(2, 3)))  # (n, n_classes)


def _small_resnet(n_classes: int, channels: int, width: int) -> nn.Module:
    return SmallResNet(n_classes, channels, width)


def _eyes_resnet(n_classes: int, channels: int, width: int) -> nn.Module:
    return SmallResNet(n_classes, channels, width, region=EyeRegion(), pooled=True)


def _resnet18(n_classes: int, channels: int, width: int) -> nn.Module:
    return _adapt_stem(ResNet18(n_classes), channels)


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "small_resnet": _small_resnet,
    "eyes_resnet": _eyes_resnet,
    "resnet18": _resnet18,
}


def build(architecture: str, n_classes: int, *, channels: int = 1, width: int = 16) -> nn.Module:
    """Returns a fresh model with weights drawn from torch's global generator (see `unlearning.devices.seeded`).

    Args:
        architecture: one of `ARCHITECTURES`, the name of any torchvision classifier, or of a network from elsewhere
            (`unlearning.factories`).
        n_classes: at least 2.
        channels: 1 (grey) or 3 (colour); the first convolution of a torchvision model is exchanged to fit.
        width: channels of the first stage; other networks have no choice here.

    Raises:
        RecipeError: unknown architecture, or a number out of range; as `factories.make`.
    """
    if n_classes < 2:
        raise RecipeError(f"Expected n_classes={n_classes} of at least 2.")
    if channels not in {1, 3}:
        raise RecipeError(f"Expected channels={channels} to be 1 (grey) or 3 (colour).")
    if width < 1:
        raise RecipeError(f"Expected width={width} of at least 1.")
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture](n_classes, channels, width)
    if factories.is_from_elsewhere(architecture):
        return factories.make(architecture, n_classes, channels)
    return _torchvision(architecture, n_classes, channels)


def build_empty(architecture: str, n_classes: int, *, channels: int, width: int) -> nn.Module:
    """Returns a model like that of `build`, to be filled with weights.

    Where it can, without memory for its own: on torch's device `meta`. torchvision's RegNets compute with tensors when
    they are made, and networks from elsewhere may keep some that are not among their weights; these are made whole.
    """
    if not factories.is_from_elsewhere(architecture):
        with contextlib.suppress(NotImplementedError), torch.device("meta"):
            return build(architecture, n_classes, channels=channels, width=width)
    with torch.random.fork_rng(devices=[]):  # the weights it draws are thrown away
        return build(architecture, n_classes, channels=channels, width=width)


def known_architecture(architecture: str) -> bool:
    """Whether `build` has this name among its own and torchvision's."""
    if architecture in ARCHITECTURES:
        return True
    from torchvision import models

    return architecture in models.list_models(module=models)


def _torchvision(architecture: str, n_classes: int, channels: int) -> nn.Module:
    from torchvision import models

    if not known_architecture(architecture):
        raise RecipeError(
            f"Unknown architecture {architecture!r}. Expected one of {sorted(ARCHITECTURES)} "
            "a classifier of torchvision.models, for example 'mobilenet_v3_small', one of timm, for example "
            "'timm:resnet18', or the import path of a function, for example 'mypackage.models:build'."
        )
    # Two of them have a second classifier for training, whose logits nobody here would use, and warn unless told how to
    # draw their weights.
    extra = {"aux_logits": False, "init_weights": True} if architecture in {"googlenet", "inception_v3"} else {}
    return _adapt_stem(models.get_model(architecture, weights=None, num_classes=n_classes, **extra), channels)


def _adapt_stem(model: nn.Module, channels: int) -> nn.Module:
    """Exchanges the first convolution for one of `channels` inputs; torchvision's are all made for colour."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != channels:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, _like(module, channels))
            return model
    raise RecipeError(f"{type(model).__name__} has no convolution to fit to {channels} channels.")


def _like(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    draw(fresh.weight)
    return fresh


def save_weights(model: nn.Module, path: Path) -> str:
    """Writes parameters and statistics as safetensors, floats as float32, and returns the file's SHA-256 in hex.

    The file appears whole or not at all: it is written beside `path` and moved there. Weights that were there before
    are destroyed.
    """
    tensors = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    content = safetensors.torch.save(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.overwrite(path, content, mode=0o666)
    return hashlib.sha256(content).hexdigest()


def start_from(model: nn.Module, path: Path, *, digest: str) -> nn.Module:
    """Fills `model` from a safetensors file of the same architecture and returns it.

    A classifier made for another number of classes is left as it was drawn.

    Raises:
        WeightsError: missing or damaged file, digest that differs, or weights of another architecture.
    """
    tensors = _read_tensors(path, digest)
    fresh = model.state_dict()
    head = list(fresh)[-1].rpartition(".")[0]  # the module whose outputs are the logits
    others = {name for name, value in tensors.items() if name not in fresh or value.shape != fresh[name].shape}
    if all(name.rpartition(".")[0] == head for name in others) and fresh.keys() == tensors.keys():
        tensors |= {name: fresh[name] for name in others}
        model.load_state_dict(tensors)
        return model
    named = sorted({name.rpartition(".")[0] for name in others | (fresh.keys() ^ tensors.keys())} - {head})
    raise WeightsError(
        f"{path.name} holds weights of another architecture or another number of channels: they differ at "
        f"{', '.join(named[:3]) or head}."
    )


def load_weights(model: nn.Module, path: Path, *, digest: str | None = None) -> nn.Module:
    """Fills `model` from a safetensors file and returns it in eval mode.

    Args:
        digest: the SHA-256 the file must have; the very bytes that were digested are the ones loaded.

    Raises:
        WeightsError: missing or damaged file, digest that differs, or weights of another architecture.
    """
    tensors = _read_tensors(path, digest)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path.name} holds weights of another architecture: {error}") from error
    return model.eval()


def _read_tensors(path: Path, digest: str | None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, from the very bytes that were digested."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"Cannot read weights {path.name}: {error.strerror}.") from error
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and found != digest:
        raise WeightsError(f"Expected weights {path.name} with the SHA-256 {digest}, found {found}.")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path.name} is not a safetensors file: {error}.") from error


def weights_digest(path: Path) -> str:
    """Returns the SHA-256 (hex) of a weights file: the name of the model version."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
