"""Devices, their arithmetic, and seeded randomness.

Nothing here changes the caller's random state: a seed opens a fork of the global generators for layers that draw their
initial weights from them, and every other draw comes from a generator that is passed on.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from unlearning.errors import RecipeError
from unlearning.recipes import DTYPES


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Returns the device to use: "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        RecipeError: the name means nothing to torch, or asks for CUDA on a machine without it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise RecipeError(f"Expected device 'auto', 'cpu' or 'cuda[:index]', got {device!r}.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"Device {str(device)!r} asks for CUDA, but torch finds none here; use 'auto' or 'cpu'.")
    return resolved


def resolve_dtype(choice: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of the forward and backward pass: bfloat16 for "auto" where the hardware multiplies it.

    Weights, their gradients' sums and the optimiser's state stay float32 whatever is chosen.

    Raises:
        RecipeError: `choice` is not one of "auto", "bfloat16", "float32".
    """
    if choice not in DTYPES:
        raise RecipeError(f"Expected dtype in {DTYPES}, got {choice!r}.")
    if choice == "auto":
        choice = "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return torch.bfloat16 if choice == "bfloat16" else torch.float32


def bound_memory(device: torch.device, share: float) -> None:
    """Lets this process take at most a share, in (0, 1], of a CUDA device's memory; elsewhere nothing is bounded.

    Beyond it torch raises its out-of-memory error here, and other processes keep theirs.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device.index)  # None: the current one


def describe_device(device: torch.device) -> str:
    """Returns the machine's own name of the device, for manifests and benchmarks.

    Of a processor also the instructions that PyTorch uses: without AVX2 it draws normal numbers with other last bits
    from the same seed, and virtual machines of one name differ in them.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, cpuinfo = "CPU", Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def stopwatch(device: torch.device) -> float:
    """Returns seconds on a monotonic clock, once the device has finished its queued work.

    On a CPU processor time of this process, all its threads together: the same work takes the same seconds whatever
    else the machine does. On CUDA, whose work no processor clock sees, wall-clock time.
    """
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Within the block torch's global generators start from `seed`; after it they have their former state.

    On CUDA only convolutions that give the same result every time are used in the block.

    Yields:
        a generator on `device` with a stream of its own, for every draw that can be handed one.
    """
    # Two streams, so that the order of the examples is not made of the numbers the initial weights are made of.
    of_globals, of_generator = (int(word) for word in np.random.SeedSequence(seed).generate_state(2, np.uint64))
    cuda_devices = [device] if device.type == "cuda" else []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(devices=cuda_devices), exact:
        torch.manual_seed(of_globals)
        yield torch.Generator(device).manual_seed(of_generator)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False))
