"""Devices: the device behind "auto", the arithmetic that pays there, randomness that leaves the caller's alone."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.waiting import PATIENCE_SECONDS, wait_until
from unlearning import devices
from unlearning.devices import bound_memory, describe_device, resolve_device, resolve_dtype, seeded, stopwatch
from unlearning.errors import RecipeError

CPU = torch.device("cpu")


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU


def test_devices_pass_through():
    assert resolve_device(CPU) == CPU
    assert resolve_device("cpu") == CPU


def test_cuda_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(RecipeError, match="torch finds none here"):
            resolve_device(asked)


def test_a_device_nobody_knows_is_told():
    with pytest.raises(RecipeError, match="Expected device"):
        resolve_device("abacus")


@pytest.mark.parametrize(("pays", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_only_where_it_pays(monkeypatch, pays, dtype):
    monkeypatch.setattr(devices, "_multiplies_bfloat16", lambda device: pays)
    assert resolve_dtype("auto", CPU) == dtype
    assert resolve_dtype("float32", CPU) == torch.float32
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "pays"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)]
)
def test_the_processor_is_asked(monkeypatch, capabilities, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", CPU) == (torch.bfloat16 if pays else torch.float32)


def test_another_dtype_is_refused():
    with pytest.raises(RecipeError, match="Expected dtype in"):
        resolve_dtype("float16", CPU)


def test_a_seed_decides_all_draws_and_leaves_the_callers_alone():
    def draws(seed: int) -> tuple[list[float], list[float]]:
        with seeded(seed, CPU) as generator:
            return torch.rand(3).tolist(), torch.rand(3, generator=generator).tolist()

    before = torch.get_rng_state()
    first = draws(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert draws(5) == first
    assert draws(6) != first
    assert first[0] != first[1]


def test_the_callers_randomness_comes_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), seeded(5, CPU):
        torch.rand(-torch.randint(1, 5, ()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_has_a_name():
    assert describe_device(CPU).strip()


def test_processors_that_draw_other_weights_have_other_names():
    code = (
        "import hashlib, torch; from unlearning.devices import describe_device;"
        "drawn = torch.randn(4096, generator=torch.Generator().manual_seed(0)).numpy().tobytes();"
        "print(hashlib.sha256(drawn).hexdigest(), describe_device(torch.device('cpu')))"
    )
    told = set()
    for capability in ("default", torch.backends.cpu.get_cpu_capability().lower()):
        process = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        told.add(tuple(process.stdout.split(" ", 1)))
    assert len({drawn for drawn, _ in told}) == len({name for _, name in told})


def test_stopwatch_counts_work_and_not_waiting():
    used, started = time.process_time(), stopwatch(CPU)
    threading.Event().wait(0.2)  # for nothing: no work is done
    waited, used = stopwatch(CPU) - started, time.process_time() - used
    assert waited <= used  # whatever other threads of this process did meanwhile
    wait_until(lambda: sum(range(10_000)) and stopwatch(CPU) > started + waited + 0.05, "the stopwatch to see work")


def test_memory_is_bounded_on_cuda_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: asked.append(given))
    bound_memory(torch.device("cpu"), 0.5)
    bound_memory(torch.device("cuda", 1), 0.25)
    bound_memory(torch.device("cuda"), 0.25)
    assert asked == [(0.25, 1), (0.25, None)]
