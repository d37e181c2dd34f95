"""Oracle matching: mix the filters and repair, then fit the last layer to answer on the forget set as an oracle does.

Ours, after an idea of Georgiev et al. (arXiv 2410.23232): an unlearned model should answer on the forget set like
models trained without it. Such *oracles* are trained in advance without the block of subjects. Only their margins of
the block's images are kept, in a bank separate from the reference bank. A run

1. applies `remix` with a short repair, which forgets single subjects in general and not only on the given images;
2. takes one oracle's margins t as its target, a different oracle for every seed until all have been used;
3. fits the last layer, W and b, to retained images, which restores accuracy, and to the target:

       min over W, b:   mean cross-entropy on retained images + hold · mean (m − t)² on the forget set + decay · ‖W‖²

   where m are the margins. Images pass the network once; the layers before the last one do not change, so the fit is
   cheap (`unlearning.procedures.last_layer`).

Runs therefore vary as oracles do, on each image and jointly over images, and have the oracles' mean. With N runs and N
oracles the margins on the forget set are those of N models trained without it, up to the error of the fit. With fewer
oracles than runs the targets repeat, which the audit detects.

What it reads: the model, both sets, and the oracles' margins of the forget set. It never reads the reference bank: the
oracles have other seeds and another folder, and methods open no file.

Cost: a part of a pass over the retain set, settling on 128 images of it, and a forward pass over at most 2,048 of them
and the forget set. Training the oracles is not counted: it is done in advance, once for all erasures of a block.
Defaults: found on the AT&T faces with subjects that are not reported on. Known failures: only the images that were
trained on are matched; the answers on other images of the subject follow only in part (docs/methods.md has figures). A
last layer can match as many images as it has inputs; of a larger forget set it learns the oracles' tendency only. Each
oracle costs one training, so the method pays where the audit's bank, which costs the same, is built in advance anyway.
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
from unlearning.training import Augment, Examples, images_at_once

_SETTLED_ON = 128  # retained images, drawn for the run, that tell the norms' statistics well enough before the fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class OracleMatchingSettings(Settings):
    """Our values.

    Attributes:
        mixed_share, epochs, learning_rate: of the first part, see `RemixSettings`.
        n_fitted: retained images, drawn for the run, that the last layer is fitted to at most.
        n_iterations: of the fit, at most; one that ends early stays nearer to the layer it began with.
        hold, decay: weights in the fit of the forget set's margins, and of the last layer's norm.
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
    """Returns the model mixed and repaired on `retain`, with one oracle's margins on `forget`.

    Raises:
        MethodError: the forget set has no oracle margins, or the last layer is not linear.
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
        n = images_at_once(images)
        kept = features_of(student, plain.batches(fitted_to, n), plain)
        exact = dataclasses.replace(plain, dtype=torch.float32)
        held = features_of(student, zip(images.split(n), labels.split(n), strict=True), exact)
    fit_last_layer(
        student, kept, held, targets[seed % len(targets)],
        hold=settings.hold, decay=settings.decay, n_iterations=settings.n_iterations,
    )  # fmt: skip
    return student
