"""What every method of the registry owes its caller; a new method is tested here the day it is listed."""

import copy
import dataclasses
import functools
import math
import random
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from audit.policy import EXACT, FROM_ORACLES, FROM_SPARE
from unlearning.errors import MethodError
from unlearning.methods import METHODS, Unlearned, find_method, settings_for, unlearn
from unlearning.models import build
from unlearning.procedures.oracles import with_oracles
from unlearning.procedures.settings import Settings
from unlearning.recipes import RECIPES
from unlearning.training import Examples, logits

REQUIRED = {
    *("fanchuan", "kookmin", "seif", "sebastian", "toshi", "amnesiacs", "sun", "forget", "random_mask"),
    *("retrain", "finetune", "gradient_ascent", "neggrad_plus", "scrub", "scrub_r", "random_label", "salun"),
    *("l1_sparse", "bad_teacher", "ssd", "cf_k", "eu_k"),
}

CANONICAL = {
    "fanchuan": {"rounds": 2, "forget_batch_size": 4, "retain_batch_size": 16},
    "sebastian": {"batch_size": 16},
    "sun": {"batch_size": 16},
    "forget": {"batch_size": 16},
    "scrub": {"epochs": 3, "max_epochs": 2, "batch_size": 16},
    "scrub_r": {"epochs": 3, "max_epochs": 2, "batch_size": 16},
    "ssd": {"batch_size": 4, "alpha": 2.0},
    "toshi": {"procedure": "pseudo_labels", "batch_size": 16},
    "amnesiacs": {"batch_size": 16},
    "bad_teacher": {"batch_size": 16},
    "dilute": {"epochs": 2, "batch_size": 16, "confidence": 0.5},
    "remix": {"epochs": 2, "batch_size": 16},
    "oracle_matching": {"epochs": 2},
    "retrain": {},
    "spare": {},
    "catch_up": {"epochs": 2, "batch_size": 16},
}
"""Settings that run in a moment and pass through every part; methods not named get two epochs of batches of 16."""

R, S = 40, 10  # examples in the fixtures
COSTS = {
    "retrain": (8 * R, 8 * R),
    "fanchuan": (S + 2 * (S + R + R), S + 2 * (S + R)),  # three forget batches and their partners a round
    "kookmin": (2 * S + 2 * R, 2 * S + 2 * R),
    "seif": (2 * R, 2 * R),
    "sebastian": (2 * (3 * R + 14), 3 * R + 14),  # 3.2 epochs of three steps are ten
    "amnesiacs": (2 * 6 * R, 6 * R),
    "sun": (9 * R, 9 * R),
    "forget": (2 * 5 * R, 5 * R),
    "random_mask": (2 * R, 2 * R),
    "finetune": (2 * R, 2 * R),
    "gradient_ascent": (2 * S, 2 * S),
    "neggrad_plus": (2 * (R + 3 * S), 2 * (R + 3 * S)),  # a forget batch beside each of three retain batches
    "scrub": (2 * (3 * R + 2 * S), 3 * R + 2 * S),
    "scrub_r": (2 * (3 * R + 2 * S) + 3 * S, 3 * R + 2 * S),
    "random_label": (2 * (R + S), 2 * (R + S)),
    "salun": (S + 2 * (R + S), S + 2 * (R + S)),
    "l1_sparse": (2 * R, 2 * R),
    "bad_teacher": (3 * (12 + S), 12 + S),  # two teachers and the student see 30 % of the retain set
    "ssd": (R + 2 * S, R + 2 * S),
    "cf_k": (2 * R, 2 * R),
    "eu_k": (2 * R, 2 * R),
    "dilute": (2 * R + 3 * R, 2 * R),  # settled, and confidence compared with the original's
    "remix": (2 * R + 3 * R, 2 * R),
    "spare": (0, 0),
    "catch_up": (2 * R, 2 * R),
    "oracle_matching": (2 * R + R + (R + S), 2 * R),  # remix, settled; what comes into the last layer
}
"""Examples forwarded and backwarded under the canonical settings, from the methods' descriptions."""


def canonical(name: str, **options) -> Settings:
    plain = CANONICAL.get(name, {"epochs": 2, "batch_size": 16})
    return METHODS[name].settings(**{**plain, **options})


@pytest.fixture(scope="module", params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def run_anew(model, forget, retain, recipe):
    """Gives a function that runs a method under its canonical settings, on other arguments where told."""
    fixed = {"model": model, "forget": forget, "retain": retain, "recipe": recipe, "device": "cpu"}
    oracles = torch.randn((6, len(forget)), generator=torch.Generator().manual_seed(3))

    def run(name: str, seed: int = 1, **changed) -> Unlearned:
        if name in METHODS and METHODS[name].needs_oracles and "forget" not in changed:
            changed["forget"] = with_oracles(forget, oracles)
        return unlearn(
            name, seed=seed, **{"settings": canonical(name) if name in METHODS else None, **fixed, **changed}
        )

    return run


@pytest.fixture(scope="module")
def run(run_anew):
    """Gives a function that does so once for each seed and remembers the result."""
    return functools.cache(lambda name, seed=1: run_anew(name, seed))


def test_registry_has_every_method():
    assert METHODS.keys() >= REQUIRED
    assert all(method.title and method.source for method in METHODS.values())


def test_result_is_a_serving_model(name, run, model):
    result = run(name).model
    assert type(result) is type(model)
    assert not any(module.training for module in result.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in result.parameters())
    assert all(not module._forward_hooks for module in result.modules())
    for key, value in model.state_dict().items():
        got = result.state_dict()[key]
        assert got.shape == value.shape
        assert got.dtype == value.dtype
        assert got.device == torch.device("cpu")
        assert torch.isfinite(got).all()
    storages = {parameter.untyped_storage().data_ptr() for parameter in result.parameters()}
    assert len(storages) == len(list(result.parameters()))  # safetensors writes no shared memory


def test_statistics_of_norms_are_sane(name, run):
    for module in run(name).model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.running_var > 0).all()
            assert module.running_mean.abs().max() < 100
            assert module.running_var.max() < 1e4


def test_state_dict_survives_safetensors(name, run, model, retain):
    result = run(name).model
    stored = safetensors.torch.save({key: value.contiguous() for key, value in result.state_dict().items()})
    again = build("small_resnet", 3, channels=1, width=4).eval()
    again.load_state_dict(safetensors.torch.load(stored))
    np.testing.assert_allclose(logits(again, retain.images), logits(result, retain.images), atol=1e-4)


def test_original_stays_as_it_is(name, run_anew, model, same):
    before = copy.deepcopy(model)
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    run_anew(name)
    assert same(model, before)
    assert not model.training
    assert not model._forward_hooks
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient is None or torch.equal(parameter.grad, gradient)


def test_examples_stay_as_they_are(name, run_anew, forget, retain):
    tensors = (forget.images, forget.labels, retain.images, retain.labels)
    before = [tensor.clone() for tensor in tensors]
    run_anew(name)
    assert all(torch.equal(tensor, unchanged) for tensor, unchanged in zip(tensors, before, strict=True))


def test_method_itself_leaves_the_network_it_is_given(name, monkeypatch, run_anew, model, same):
    given, method = [], METHODS[name]

    def watched(network, *sets, **options):
        given.append(network)
        return method.function(network, *sets, **options)

    monkeypatch.setitem(METHODS, name, dataclasses.replace(method, function=watched))
    run_anew(name)
    assert same(given[0], model)


def test_same_seed_same_result(name, run, run_anew, same):
    assert same(run_anew(name).model, run(name).model)


def test_different_seeds_different_results(name, run, same):
    assert same(run(name, seed=1).model, run(name, seed=2).model) == (name == "spare")  # taken as it is


OPENED: list[list[str]] = []  # lists that are being filled


def _note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED and event == "open" and isinstance(arguments[0], str):
        OPENED[-1].append(arguments[0])


sys.addaudithook(_note_opened)  # cannot be taken off again; it does nothing while OPENED is empty


def test_no_file_is_opened_and_so_no_bank_of_references(name, run, run_anew):
    """A method may know the model and two sets of examples, and nothing of what will judge it."""
    run(name)  # whatever is imported late has been imported now
    OPENED.append([])
    try:
        run_anew(name)
    finally:
        opened = OPENED.pop()
    assert [path for path in opened if not path.startswith(("/proc/", "/sys/", "/dev/"))] == []


def test_random_state_of_the_caller_is_left_alone(name, run_anew):
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    run_anew(name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_random_state_of_the_caller_does_not_matter(name, run, run_anew, same):
    torch.manual_seed(12345)
    again = run_anew(name, seed=2)
    assert same(again.model, run(name, seed=2).model)


def test_cost_is_what_the_description_says(name, run, forget, retain):
    assert (len(retain), len(forget)) == (R, S)
    cost = run(name).cost
    if name == "toshi":  # how many mistakes there are to teach is the probe's affair
        n_taught = cost.n_backward - 3 * R - R
        assert 0 <= n_taught <= 3 * S
        assert cost.n_forward == cost.n_backward + S
    else:
        assert name in COSTS, f"say in COSTS what {name} costs"
        assert (cost.n_forward, cost.n_backward) == COSTS[name]
    assert cost.seconds > 0


def test_runs_without_forget_set_or_says_that_it_cannot(name, run_anew, model, retain):
    if METHODS[name].needs_forget:
        with pytest.raises(MethodError, match="reads the forget set"):
            run_anew(name, forget=None)
        with pytest.raises(MethodError, match="reads the forget set"):
            METHODS[name].function(model, None, retain, settings=canonical(name), seed=1, device="cpu")
    else:
        assert run_anew(name, forget=None).model is not model


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_oracles])
def test_methods_that_need_oracles_say_that_none_came(name, run_anew, forget):
    with pytest.raises(MethodError, match="what oracles say of the forget set"):
        run_anew(name, forget=forget)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs_forget])
def test_forget_set_does_not_matter_to_methods_that_do_not_read_it(name, run, run_anew, same):
    assert same(run_anew(name, forget=None).model, run(name).model)


def test_empty_sets_are_refused(name, run_anew, forget):
    empty = Examples(forget.images[:0], forget.labels[:0])
    with pytest.raises(MethodError, match="empty forget set"):
        run_anew(name, forget=empty)
    with pytest.raises(MethodError, match="empty retain set"):
        run_anew(name, retain=empty)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.exact and not method.needs_spare])
def test_exact_methods_never_read_the_original(name, run, run_anew, same):
    with torch.random.fork_rng():
        torch.manual_seed(99)
        stranger = build("small_resnet", 3, channels=1, width=4)
    assert same(run_anew(name, model=stranger).model, run(name).model)


def test_policies_know_the_methods_apart_without_loading_them():
    """`audit.policy` names them, so that a look at the banks need not load torch."""
    assert set(EXACT) == {name for name, method in METHODS.items() if method.exact}
    assert set(FROM_SPARE) == {name for name, method in METHODS.items() if method.needs_spare}
    assert set(FROM_ORACLES) == {name for name, method in METHODS.items() if method.needs_oracles}


def test_settings_of_another_method_are_refused(name, run_anew):
    wrong = METHODS["finetune" if name != "finetune" else "seif"].settings()
    with pytest.raises(MethodError, match=f"{name}: expected"):
        run_anew(name, settings=wrong)


def test_settings_are_frozen_plain_and_read_back(name):
    settings = METHODS[name].settings()
    assert type(settings).from_dict(settings.to_dict()) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.recipe = None
    with pytest.raises(MethodError, match="has no"):
        type(settings).from_dict({"learning_rat": 1.0})


def test_every_setting_is_checked_with_a_sentence(name):
    settings_type = METHODS[name].settings
    for field in dataclasses.fields(settings_type):
        if field.name == "recipe":
            continue
        wrong: list[object]
        if "choices" in field.metadata:
            wrong = ["nonsense"]
        elif isinstance(field.default, bool):
            wrong = [1, "yes"]
        else:
            low, high = field.metadata["range"]
            wrong = [low - 1, high + 1, math.nan, "1", True]
            if isinstance(field.default, int):
                wrong.append(low + 0.5)
            if isinstance(field.default, tuple):
                wrong = [(), *((value,) for value in wrong)]
        for value in wrong:
            with pytest.raises(MethodError, match=rf"{settings_type.__name__}: expected {field.name}"):
                settings_type(**{field.name: value})


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_every_recipe_has_settings(name, recipe_name):
    settings = settings_for(name, RECIPES[recipe_name])
    assert type(settings) is METHODS[name].settings
    assert settings.recipe == RECIPES[recipe_name]


def test_works_in_bfloat16(name, run_anew, recipe):
    half = dataclasses.replace(recipe, dtype="bfloat16", epochs=2)
    result = run_anew(name, recipe=half).model
    assert {value.dtype for value in result.parameters()} == {torch.float32}


def test_unknown_method_is_refused(run_anew):
    with pytest.raises(MethodError, match=r"Unknown method 'magic'\. Expected one of"):
        run_anew("magic")
    with pytest.raises(MethodError, match="Unknown method"):
        find_method("magic")


def test_diverged_result_is_refused(run_anew):
    wild = METHODS["gradient_ascent"].settings(learning_rate=10.0, momentum=0.99, epochs=40)
    with pytest.raises(MethodError, match=r"diverged.*lower its learning rates"):
        run_anew("gradient_ascent", settings=wild)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_on_cuda(name, run_anew, recipe, same):
    mixed = dataclasses.replace(recipe, dtype="auto", epochs=2)
    one, again = (run_anew(name, recipe=mixed, device="cuda").model for _ in range(2))
    assert {value.device.type for value in one.state_dict().values()} == {"cuda"}
    assert same(one, again)
