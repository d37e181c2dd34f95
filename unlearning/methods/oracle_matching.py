"""Oracle matching: mix the filters and repair, then fit the last layer to answer on the forget set as an oracle does.

Ours, after an idea of Georgiev et al. (arXiv 2410.23232): what an unlearned model should say of the forgotten is what
models say that never saw them. Such *oracles* are trained ahead without the block of people, a bank of its own beside
the reference bank that judges, and leave only their margins of the block's images. A run

1. is `remix` with a short repair, so that what is known of single people is loosened everywhere and not only on the
   images at hand;
2. takes one oracle's margins t as its target, another one for every seed until all have been taken;
3. fits the last layer, W and b, to the retained images, where loosening cost accuracy, and to the target:

       min over W, b:   mean cross-entropy on retained images + hold · mean (m − t)² on the forget set + decay · ‖W‖²

   with m the margins. Images pass the network once; what comes before the last layer stays, so that the fit itself
   costs next to nothing (`unlearning.procedures.last_layer`).

Runs so spread as oracles do, image by image and over images together, and their mean is the oracles'. With N runs and N
oracles the margins on the forget set are those of N models that never saw it, up to what the fit leaves; with fewer
oracles than runs targets repeat, and the audit sees it.

What it reads: the model, both sets, the oracles' margins of the forget set. Never the reference bank: the oracles'
seeds and folder are others, and methods open no file.

Cost: a part of a pass over the retain set, settling on 128 images of it, and a forward pass over 2,048 of them at most
and the forget set. The oracles' trainings are not in it: they are paid ahead, once for all erasures of the block.
Defaults: found on the AT&T faces with people who are not reported on. Known failures: matched are the images that were
learned from; what the model says of other pictures of the person moves along only in part, and more of the person is
left there (docs/methods.md has figures). A last layer can be told about as many images apart as it has inputs; of a
larger forget set it learns the oracles' tendency, not their every answer. Oracles cost as many trainings as there are
of them, so it pays where the audit's bank, which costs the same, is built ahead anyway.
"""

import dataclasses

import torch
from torch import nn

from unlearning.methods.remix import RemixSettings, remix
from unlearning.models import to_inputs
from unlearning.procedures.feeding import feeding, needed
from unlearning.procedures.finishing import finish, sample
from unlearning.procedures.last_layer import features_of, fit_last_layer
from unlearning.procedures.oracles import oracle_margins
from unlearning.procedures.settings import Settings, ranged
from unlearning.training import Augment, Examples

_SETTLED_ON = 128  # retained images, drawn for the run, that tell the norms' statistics well enough before the fit
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class OracleMatchingSettings(Settings):
    """Our values.

    Attributes:
        mixed_share, epochs, learning_rate: of the first part, see `RemixSettings`.
        n_fitted: retained images, drawn for the run, that the last layer is fitted to at most.
        n_iterations: of the fit, at most; one that ends early stays nearer to the layer it began with.
        hold, decay: weights in the fit of the forget set's margins, and of the last layer's size.
        n_oracles: oracles to train ahead, and to take targets from.
    """

    mixed_share: float = ranged(0.35, 0.0, 1.0)
    epochs: float = ranged(0.2, 0.0, 1_000.0)
    learning_rate: float = ranged(0.085, 0.0, 10.0)
    n_fitted: int = ranged(2048, 1, 65_536)
    n_iterations: int = ranged(60, 1, 10_000)
    hold: float = ranged(0.3, 0.0, 1_000.0)
    decay: float = ranged(1e-3, 0.0, 10.0)
    n_oracles: int = ranged(128, 1, 65_536)

    @property
    def loosening(self) -> RemixSettings:
        """Settings of the first part; the fit sees to confidence."""
        return RemixSettings(
            recipe=self.recipe,
            mixed_share=self.mixed_share,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            confidence=0.0,
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
        MethodError: nothing of oracles came with the forget set; the logits are not those of a linear layer.
    """
    forget = needed(forget)
    targets = oracle_margins(forget)[: settings.n_oracles]
    student = remix(model, None, retain, settings=settings.loosening, seed=seed, device=device)
    where = next(student.parameters()).device
    with feeding(settings, seed, device) as feed:
        settled_on, fitted_to = sample(retain, _SETTLED_ON, feed), sample(retain, settings.n_fitted, feed)
    finish(student, model, settled_on, settings=settings.loosening, seed=seed, device=where)
    student.eval()
    images, labels = to_inputs(forget.images.to(where)), forget.labels.to(where)
    with feeding(settings, seed, device) as feed:
        plain = dataclasses.replace(feed, augment=Augment())
        kept = features_of(student, plain.batches(fitted_to, _BATCH_SIZE), plain)
        exact = dataclasses.replace(plain, dtype=torch.float32)
        held = features_of(student, zip(images.split(_BATCH_SIZE), labels.split(_BATCH_SIZE), strict=True), exact)
    fit_last_layer(
        student, kept, held, targets[seed % len(targets)],
        hold=settings.hold, decay=settings.decay, n_iterations=settings.n_iterations,
    )  # fmt: skip
    return student
