"""Unlearning methods: a trained model, a forget set and a retain set in; a model that should have forgotten out.

A method is a function `(model, forget, retain, *, settings, seed, device) -> model`, one file each. `METHODS` lists
them and `unlearn` runs one with its cost counted. Adding a method is a file and a line; the contract tests find it.
"""

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from unlearning.devices import resolve_device
from unlearning.errors import MethodError
from unlearning.methods import (
    amnesiacs,
    bad_teacher,
    cf_k,
    dilute,
    fanchuan,
    finetune,
    forget,
    gradient_ascent,
    kookmin,
    l1_sparse,
    neggrad_plus,
    random_label,
    random_mask,
    retrain,
    salun,
    scrub,
    sebastian,
    seif,
    ssd,
    sun,
    toshi,
)
from unlearning.methods.cost import Cost, metered, stopwatch
from unlearning.methods.finishing import finish
from unlearning.methods.settings import ApproximateSettings, Settings, bound_to
from unlearning.methods.tuned import tuned_record, tuned_settings
from unlearning.recipes import Recipe
from unlearning.training import Examples

__all__ = [
    "METHODS",
    "Cost",
    "Method",
    "Settings",
    "Unlearned",
    "find_method",
    "settings_for",
    "tuned_record",
    "unlearn",
]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as the registry knows it.

    Attributes:
        function: `(model, forget, retain, *, settings, seed, device) -> model`.
        settings: its frozen dataclass; the defaults are the authors' values.
        title: what people call it.
        source: whose it is.
        needs_forget: reads the forget set; the others run without one.
        exact: never reads the original's weights, so nothing of the forget set can be left.
    """

    function: Callable[..., nn.Module]
    settings: type[Settings]
    title: str
    source: str
    needs_forget: bool
    exact: bool = False


_CHALLENGE = "NeurIPS 2023 machine unlearning challenge"

METHODS: dict[str, Method] = {
    "retrain": Method(
        retrain.retrain,
        retrain.RetrainSettings,
        "Exact retraining",
        "the definition of unlearning",
        needs_forget=False,
        exact=True,
    ),
    "fanchuan": Method(
        fanchuan.fanchuan, fanchuan.FanchuanSettings, "Fanchuan", f"{_CHALLENGE}, place 1", needs_forget=True
    ),
    "kookmin": Method(
        kookmin.kookmin, kookmin.KookminSettings, "Kookmin (MSG)", f"{_CHALLENGE}, place 2", needs_forget=True
    ),
    "seif": Method(seif.seif, seif.SeifSettings, "Seif", f"{_CHALLENGE}, place 3", needs_forget=False),
    "sebastian": Method(
        sebastian.sebastian,
        sebastian.SebastianSettings,
        "Sebastian (PRMQ)",
        f"{_CHALLENGE}, place 4",
        needs_forget=False,
    ),
    "toshi": Method(
        toshi.toshi, toshi.ToshiSettings, "Toshi (CT, pseudo-labels)", f"{_CHALLENGE}, place 5", needs_forget=True
    ),
    "amnesiacs": Method(
        amnesiacs.amnesiacs, amnesiacs.AmnesiacsSettings, "Amnesiacs", f"{_CHALLENGE}, place 6", needs_forget=False
    ),
    "sun": Method(sun.sun, sun.SunSettings, "Sun", f"{_CHALLENGE}, place 7", needs_forget=False),
    "forget": Method(
        forget.forget_cycles, forget.ForgetSettings, "Forget", f"{_CHALLENGE}, place 8", needs_forget=False
    ),
    "random_mask": Method(
        random_mask.random_mask,
        random_mask.RandomMaskSettings,
        "Random mask",
        f"{_CHALLENGE}, family of place 9",
        needs_forget=False,
    ),
    "finetune": Method(
        finetune.finetune,
        finetune.FinetuneSettings,
        "Fine-tuning",
        "google-deepmind/unlearning_evaluation",
        needs_forget=False,
    ),
    "gradient_ascent": Method(
        gradient_ascent.gradient_ascent,
        gradient_ascent.GradientAscentSettings,
        "Gradient ascent",
        "arXiv 1911.04933",
        needs_forget=True,
    ),
    "neggrad_plus": Method(
        neggrad_plus.neggrad_plus, neggrad_plus.NegGradPlusSettings, "NegGrad+", "arXiv 2302.09880", needs_forget=True
    ),
    "scrub": Method(scrub.scrub, scrub.ScrubSettings, "SCRUB", "arXiv 2302.09880", needs_forget=True),
    "scrub_r": Method(scrub.scrub_r, scrub.ScrubRSettings, "SCRUB+R", "arXiv 2302.09880", needs_forget=True),
    "random_label": Method(
        random_label.random_label,
        random_label.RandomLabelSettings,
        "Random label",
        "arXiv 1911.04933",
        needs_forget=True,
    ),
    "salun": Method(salun.salun, salun.SalUnSettings, "SalUn", "arXiv 2310.12508", needs_forget=True),
    "l1_sparse": Method(
        l1_sparse.l1_sparse, l1_sparse.L1SparseSettings, "L1-sparse", "arXiv 2304.04934", needs_forget=False
    ),
    "bad_teacher": Method(
        bad_teacher.bad_teacher, bad_teacher.BadTeacherSettings, "Bad teacher", "arXiv 2205.08096", needs_forget=True
    ),
    "ssd": Method(ssd.ssd, ssd.SSDSettings, "Selective synaptic dampening", "arXiv 2308.07707", needs_forget=True),
    "cf_k": Method(cf_k.cf_k, cf_k.LastBlocksSettings, "CF-k", "arXiv 2201.06640", needs_forget=False),
    "dilute": Method(dilute.dilute, dilute.DiluteSettings, "Dilute", "ours", needs_forget=False),
    "eu_k": Method(cf_k.eu_k, cf_k.LastBlocksSettings, "EU-k", "arXiv 2201.06640", needs_forget=False),
}


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """What a run gives: a model in eval mode with finite float32 weights, and what it cost."""

    model: nn.Module
    cost: Cost


def find_method(name: str) -> Method:
    """Gives the method of that name.

    Raises:
        MethodError: there is none.
    """
    if name not in METHODS:
        raise MethodError(f"Unknown method {name!r}. Expected one of {sorted(METHODS)}.")
    return METHODS[name]


def settings_for(name: str, recipe: Recipe) -> Settings:
    """Gives the settings `unlearn` uses for a recipe by itself: tuned ones if there are any, else the authors'."""
    return tuned_settings(name, find_method(name).settings, recipe)


def unlearn(
    name: str,
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    recipe: Recipe,
    seed: int,
    device: str | torch.device = "auto",
    settings: Settings | None = None,
) -> Unlearned:
    """Runs a method and the finishing touches its settings ask for, and counts the cost of both.

    The model, the examples and the caller's random state stay as they are.

    Args:
        forget: what to forget; None only for methods that do not read it.
        recipe: of the original model; augmentation and arithmetic are taken from it.
        settings: None for `settings_for(name, recipe)`; their recipe is replaced by `recipe`.

    Raises:
        MethodError: unknown method, settings of another method, empty sets, a missing forget set, or a result that is
            not a finite float32 model of the same architecture.
    """
    method = find_method(name)
    if settings is not None and type(settings) is not method.settings:
        raise MethodError(f"{name}: expected {method.settings.__name__}, got {type(settings).__name__}.")
    chosen = settings_for(name, recipe) if settings is None else bound_to(settings, recipe)
    _check_sets(name, method, forget, retain)
    where = resolve_device(device)
    started = stopwatch(where)
    original = copy.deepcopy(model).to(where).eval()
    with metered(original) as meter:
        result = method.function(
            original,
            forget.to(where) if forget is not None else None,
            retain.to(where),
            settings=chosen,
            seed=seed,
            device=where,
        )
        if isinstance(chosen, ApproximateSettings):
            finish(result, original, retain.to(where), settings=chosen, seed=seed, device=where)
        meter.detach(result)
    _release(result)
    cost = Cost(meter.n_forward, meter.n_backward, stopwatch(where) - started)
    _check_result(name, result, model)
    return Unlearned(result, cost)


def _release(result: nn.Module) -> None:
    """Brings a network out of training: eval mode, every parameter trainable, in its own memory, without gradient."""
    result.eval().requires_grad_(True)
    for parameter in result.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
        parameter.grad = None


def _check_sets(name: str, method: Method, forget: Examples | None, retain: Examples) -> None:
    if forget is None and method.needs_forget:
        raise MethodError(f"{name} reads the forget set, but none was given; pass it or choose a method without.")
    if forget is not None and len(forget) == 0:
        raise MethodError(f"{name}: expected at least one example to forget, got an empty forget set.")
    if len(retain) == 0:
        raise MethodError(f"{name}: expected at least one example to retain, got an empty retain set.")


def _check_result(name: str, result: nn.Module, original: nn.Module) -> None:
    expected, got = original.state_dict(), result.state_dict()
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in got.items()}:
        raise MethodError(f"{name} changed the architecture; expected the original's tensors and shapes.")
    for key, value in got.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise MethodError(f"{name}: expected float32 weights, got {value.dtype} in {key}.")
        if not bool(torch.isfinite(value).all()):
            raise MethodError(f"{name} diverged: {key} has values that are not finite; lower its learning rates.")
