"""Oracle matching: mix the filters and repair, then take the forget set's margins to where an oracle has them.

Ours, after an idea of Georgiev et al. (arXiv 2410.23232): what an unlearned model should say of the forgotten is what
models say that never saw them. Such *oracles* are trained ahead without the block of people, a bank of its own beside
the reference bank that judges, and leave only their margins of the block's images. A run

1. is `remix` with little mixing and a short repair, so that what is known of single people is loosened everywhere and
   not only on the images at hand;
2. takes one oracle's margins t as its target, another one for every seed until all have been taken;
3. takes a few steps of Gauss–Newton, each the smallest change of all weights that takes the margins m of the forget
   set to t, and leaves those of a few retained images where they are, as far as a linear view of the network tells:

       Δθ = Jᵀ (J Jᵀ + λI)⁻¹ (t − m),   J = ∂m / ∂θ,   λ = damping · mean diagonal of J Jᵀ.

Runs so spread as oracles do, image by image and over images together, and their mean is the oracles'. With N runs and N
oracles the margins on the forget set are those of N models that never saw it, up to what the steps leave; with fewer
oracles than runs targets repeat, and the audit sees it.

What it reads: the model, both sets, the oracles' margins of the forget set. Never the reference bank: the oracles'
seeds and folder are others, and methods open no file.

Cost: a part of a pass over the retain set, settling and the comparison of confidence on 128 images of it, and for each
step a gradient an image to forget or to keep. The oracles' trainings are not in it: they are paid ahead, once for all
erasures of the block. Defaults: found on the AT&T faces with people who are not reported on. Known failure: matched are
the images that were learned from. What the model says of other pictures of the person, mirrored ones say, moves along
only in part, and more of the person is left there (docs/methods.md has figures). Oracles cost as many trainings as
there are of them, so it pays where the audit's bank, which costs the same, is built ahead anyway.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearning.methods.cost import report
from unlearning.methods.feeding import feeding, needed
from unlearning.methods.finishing import finish, margins, sample
from unlearning.methods.oracles import oracle_margins
from unlearning.methods.remix import RemixSettings, remix
from unlearning.methods.settings import Settings, ranged
from unlearning.models import to_inputs
from unlearning.training import Examples

_LARGEST_JACOBIAN = 2**26  # entries of a part of J that are held at once, 256 MB
_IMAGES_AT_ONCE = 64
_SETTLED_ON = 128  # retained images, drawn for the run, that tell the norms' statistics well enough before the steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class OracleMatchingSettings(Settings):
    """Our values.

    Attributes:
        mixed_share, epochs, learning_rate, confidence: of the first part, see `RemixSettings`.
        n_steps: Gauss–Newton steps.
        damping: λ as a share of the mean squared gradient of a margin.
        n_kept: retained images, drawn for the run, whose margins the steps leave alone.
        n_oracles: oracles to train ahead, and to take targets from.
    """

    mixed_share: float = ranged(0.45, 0.0, 1.0)
    epochs: float = ranged(0.2, 0.0, 1_000.0)
    learning_rate: float = ranged(0.085, 0.0, 10.0)
    confidence: float = ranged(0.8, 0.0, 1.0)
    n_steps: int = ranged(2, 0, 100)
    damping: float = ranged(1e-2, 1e-6, 100.0)
    n_kept: int = ranged(8, 0, 65_536)
    n_oracles: int = ranged(128, 1, 65_536)

    @property
    def loosening(self) -> RemixSettings:
        """Settings of the first part."""
        return RemixSettings(
            recipe=self.recipe,
            mixed_share=self.mixed_share,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            confidence=self.confidence,
        )


def oracle_matching(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: OracleMatchingSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Gives the model loosened and repaired on `retain`, its margins on `forget` where one of the oracles has them.

    Raises:
        MethodError: nothing of oracles came with the forget set.
    """
    forget = needed(forget)
    targets = oracle_margins(forget)[: settings.n_oracles]
    student = remix(model, None, retain, settings=settings.loosening, seed=seed, device=device)
    where = next(student.parameters()).device
    with feeding(settings, seed, device) as feed:
        settled_on, kept = sample(retain, _SETTLED_ON, feed), sample(retain, settings.n_kept, feed)
    finish(student, model, settled_on, settings=settings.loosening, seed=seed, device=where)
    student.eval()
    images = torch.cat([to_inputs(part.images.to(where)) for part in (forget, kept)])
    labels = torch.cat([part.labels.to(where) for part in (forget, kept)])
    with torch.no_grad():
        target = margins(student(images).float(), labels)
    target[: len(forget)] = targets[seed % len(targets)].to(where)
    for _ in range(settings.n_steps):
        match(student, images, labels, target, damping=settings.damping)
    return student


def match(student: nn.Module, images: Tensor, labels: Tensor, target: Tensor, *, damping: float) -> None:
    """Takes one damped Gauss–Newton step of smallest size that moves margins to `target`, in place.

    Args:
        student: in eval mode.
        images: inputs `(n, channels, height, width)`.
        labels: `(n,)`.
        target: margins `(n,)`.
        damping: see `OracleMatchingSettings`.
    """
    groups = _groups(student, _LARGEST_JACOBIAN // len(images))
    products = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)  # J Jᵀ
    for names in groups:
        jacobian, now = margin_gradients(student, names, images, labels)
        products += jacobian @ jacobian.T
    damped = products + damping * products.diagonal().mean() * torch.eye(len(images), device=images.device)
    factors = torch.linalg.solve(damped, (target - now).double()).float()
    if len(groups) == 1:
        change = jacobian.T @ factors
    else:  # Jᵀ · factors is the gradient of the margins' sum, weighed by them
        weighed = factors @ margins(student(images).float(), labels)
        change = torch.cat([part.flatten() for part in torch.autograd.grad(weighed, list(student.parameters()))])
    with torch.no_grad():
        for weight, part in zip(student.parameters(), _parts(change, student), strict=True):
            weight.add_(part)


def margin_gradients(student: nn.Module, names: list[str], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the gradient of each image's margin by some parameters, a row an image, and the margins themselves.

    Returns:
        float32 `(n, n_weights)` and `(n,)`.
    """
    bare = _Bare(student)
    inner = {name: f"student.{name}" for name in names}
    varied = {inner[name]: student.get_parameter(name).detach() for name in names}

    def margin(varied: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        found = margins(functional_call(bare, varied, (image[None],)).float(), label[None]).squeeze(0)
        return found, found

    with sdpa_kernel(SDPBackend.MATH):  # the fused attention cannot be differentiated for each image
        one = grad(margin, has_aux=True)
        rows, now = vmap(one, in_dims=(None, 0, 0), chunk_size=_IMAGES_AT_ONCE)(varied, images, labels)
    report(n_forward=len(images), n_backward=len(images))
    return torch.cat([rows[inner[name]].detach().flatten(1) for name in names], dim=1), now.detach()


class _Bare(nn.Module):
    """A network without the hooks that hang on it: they count batches and would see one image of all."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        """Gives the network's logits."""
        logits: Tensor = self.student.forward(images)
        return logits


def _groups(student: nn.Module, largest: int) -> list[list[str]]:
    """Names of parameters, in order, in groups of at most `largest` entries; a larger one stands alone."""
    groups: list[list[str]] = []
    size = 0
    for name, weight in student.named_parameters():
        if not groups or size + weight.numel() > largest:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += weight.numel()
    return groups


def _parts(flat: Tensor, student: nn.Module) -> list[Tensor]:
    """A vector over all weights, cut into the parameters' shapes."""
    sizes = [parameter.numel() for parameter in student.parameters()]
    return [part.view_as(p) for part, p in zip(flat.split(sizes), student.parameters(), strict=True)]
