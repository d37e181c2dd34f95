"""All methods by name. A new method is a file and a line here; the contract tests and the commands find it.

Tested in `tests/unlearning/methods/test_contract.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

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
    oracle_matching,
    random_label,
    random_mask,
    remix,
    retrain,
    salun,
    scrub,
    sebastian,
    seif,
    spare,
    ssd,
    sun,
    toshi,
)
from unlearning.procedures.last_layer import last_layer
from unlearning.procedures.modules import convolution_weights, layout
from unlearning.procedures.settings import Settings


@dataclasses.dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        function: `(model, forget, retain, *, settings, seed, device) -> model`.
        settings: its frozen dataclass; the defaults are the authors' values.
        title: human-readable title.
        source: its authors or paper.
        needs_forget: reads the forget set; the others run without one.
        needs_oracles: reads oracle margins of the forget set, see `unlearning.procedures.oracles`.
        needs_spare: starts from a spare, a model trained without the forget set, in the original's place; see
            `unlearning.methods.spare`.
        exact: never reads weights that depended on the forget set, so nothing of it can remain.
        needs: `(model, settings)`; raises MethodError if the network lacks a part that the method works on.
    """

    function: Callable[..., nn.Module]
    settings: type[Settings]
    title: str
    source: str
    needs_forget: bool
    exact: bool = False
    needs_oracles: bool = False
    needs_spare: bool = False
    needs: Callable[[nn.Module, Any], object] = lambda model, settings: None


def _convolutions(model: nn.Module, settings: Any) -> object:
    return convolution_weights(model)


def _kernels_of_seif(model: nn.Module, settings: seif.SeifSettings) -> object:
    return layout(model).first_convolution if settings.noise_on == "stem" else convolution_weights(model)


def _last_blocks(model: nn.Module, settings: cf_k.LastBlocksSettings) -> object:
    return cf_k.last_modules(model, settings.k)


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
    "spare": Method(
        spare.spare,
        spare.SpareSettings,
        "Spare model",
        "ours, after arXiv 1912.03817",
        needs_forget=False,
        exact=True,
        needs_spare=True,
    ),
    "catch_up": Method(
        spare.catch_up,
        spare.CatchUpSettings,
        "Spare model, caught up",
        "ours, after arXiv 1912.03817",
        needs_forget=False,
        exact=True,
        needs_spare=True,
    ),
    "fanchuan": Method(
        fanchuan.fanchuan, fanchuan.FanchuanSettings, "Fanchuan", f"{_CHALLENGE}, place 1", needs_forget=True
    ),
    "kookmin": Method(
        kookmin.kookmin,
        kookmin.KookminSettings,
        "Kookmin (MSG)",
        f"{_CHALLENGE}, place 2",
        needs_forget=True,
        needs=_convolutions,
    ),
    "seif": Method(
        seif.seif, seif.SeifSettings, "Seif", f"{_CHALLENGE}, place 3", needs_forget=False, needs=_kernels_of_seif
    ),
    "sebastian": Method(
        sebastian.sebastian,
        sebastian.SebastianSettings,
        "Sebastian (PRMQ)",
        f"{_CHALLENGE}, place 4",
        needs_forget=False,
    ),
    "toshi": Method(
        toshi.toshi,
        toshi.ToshiSettings,
        "Toshi (CT, pseudo-labels)",
        f"{_CHALLENGE}, place 5",
        needs_forget=True,
        needs=lambda model, settings: settings.procedure == "pseudo_labels" or toshi.square_kernels(model),
    ),
    "amnesiacs": Method(
        amnesiacs.amnesiacs,
        amnesiacs.AmnesiacsSettings,
        "Amnesiacs",
        f"{_CHALLENGE}, place 6",
        needs_forget=False,
        needs=lambda model, settings: layout(model).first_convolution,
    ),
    "sun": Method(
        sun.sun,
        sun.SunSettings,
        "Sun",
        f"{_CHALLENGE}, place 7",
        needs_forget=False,
        needs=lambda model, settings: layout(model),
    ),
    "forget": Method(
        forget.forget_cycles,
        forget.ForgetSettings,
        "Forget",
        f"{_CHALLENGE}, place 8",
        needs_forget=False,
        needs=lambda model, settings: forget.layers_to_draw(model),
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
    "cf_k": Method(
        cf_k.cf_k, cf_k.LastBlocksSettings, "CF-k", "arXiv 2201.06640", needs_forget=False, needs=_last_blocks
    ),
    "dilute": Method(dilute.dilute, dilute.DiluteSettings, "Dilute", "ours", needs_forget=False),
    "remix": Method(remix.remix, remix.RemixSettings, "Remix", "ours", needs_forget=False),
    "oracle_matching": Method(
        oracle_matching.oracle_matching,
        oracle_matching.OracleMatchingSettings,
        "Oracle matching",
        "ours, after arXiv 2410.23232",
        needs_forget=True,
        needs_oracles=True,
        needs=lambda model, settings: last_layer(model),
    ),
    "eu_k": Method(
        cf_k.eu_k, cf_k.LastBlocksSettings, "EU-k", "arXiv 2201.06640", needs_forget=False, needs=_last_blocks
    ),
}


def find_method(name: str) -> Method:
    """Returns the method of that name.

    Raises:
        MethodError: unknown name.
    """
    if name not in METHODS:
        raise MethodError(f"Unknown method {name!r}. Expected one of {sorted(METHODS)}.")
    return METHODS[name]
