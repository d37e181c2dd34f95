"""A home of the service whose model is a ResNet-18 of random weights, and the images sent to it.

Random weights take as long to compute as trained ones. The norms' statistics are taken from the images, and the last
layer is scaled up, so that answers differ from image to image and from one seed to another.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.contenders.model import ARCHITECTURE, CLASSES, Shape, manifest
from benchmarks.loads.sampling import Sampler
from service.context import Context
from service.inference.network import network_for
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.models import deployment, registry
from service.models.barrier import look
from service.settings import Settings
from service.store.engine import session
from unlearning.faces.sources import synthetic
from unlearning.models import build, save_weights, to_inputs

_LISTENING_SECONDS = (
    3.0  # a process says that it is ready a moment before it listens, and one would have all connections
)
_QUICKER = ("uvloop", "httptools")


def image_files(shape: Shape, n: int) -> tuple[bytes, ...]:
    """Drawn faces as JPEG files of exactly this shape, quality 90."""
    drawn = synthetic.draw(n_subjects=n, images_per_subject=1, size=shape[:2], seed=3).images
    files = []
    for image in drawn[:n]:
        stream = io.BytesIO()
        Image.fromarray(image).convert("L" if shape[2] == 1 else "RGB").save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return tuple(files)


def pixels(file: bytes, shape: Shape) -> NDArray[np.uint8]:
    """Pixels of such a file, uint8 of that shape."""
    return np.array(Image.open(io.BytesIO(file))).reshape(shape)


def write_weights(path: Path, shape: Shape, seed: int, images: NDArray[np.uint8]) -> None:
    """A ResNet-18 drawn from a seed, its norms set by images uint8 `(n, height, width, channels)`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(ARCHITECTURE, len(CLASSES), channels=shape[2])
    inputs = to_inputs(torch.from_numpy(images).permute(0, 3, 1, 2))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this batch, nothing of the initial ones
    with torch.no_grad():
        spread = model.train()(inputs).std(dim=0).mean()
        model.fc.weight.mul_(1.5 / spread)
    save_weights(model, path)


def settings_of(home: Path, **changes: object) -> Settings:
    """Settings as in the container image: JSON logs, metrics on."""
    ports = free_ports(2)
    values = {"home": home, "port": ports[0], "console_port": ports[1], "log_format": "json"}
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def make_home(settings: Settings, shape: Shape, files: tuple[bytes, ...], seeds: range) -> tuple[list[str], str]:
    """A registry with a version for each seed, the first of them active; gives digests and an API key."""
    context = Context.open(settings)
    images = np.stack([pixels(file, shape) for file in files])
    digests = []
    for seed in seeds:
        path = settings.home / "drawn.safetensors"
        write_weights(path, shape, seed, images)
        of_seed = manifest(shape, seed)
        digests.append(registry.add(context, path, of_seed, network=network_for(context, of_seed)))
        path.unlink()
    deployment.activate_first(context, digests[0])
    with session(context.engine) as s:
        _, key = api_keys.create_key(s, name="load", scopes=[api_keys.PREDICT], now=context.now(), key_id="load")
        s.commit()
    context.engine.dispose()
    return digests, key


def serving_pids(context: Context) -> list[int]:
    """Serving processes that answer with a model now."""
    return sorted(row.pid for row in look(context).alive() if row.acknowledged_generation >= 1)


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that living processes took so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


@contextmanager
def serving(context: Context) -> Iterator[tuple[Processes, list[int]]]:
    """The serving processes of a home, ready, as they are without what only other servers need; and their numbers."""
    settings = context.settings
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(hidden("expunge", settings.home))
    try:
        with Processes(settings) as processes:
            processes.start_serving()
            processes.wait_until(
                lambda: len(serving_pids(context)) >= settings.api_workers, "the serving processes", 120
            )
            time.sleep(_LISTENING_SECONDS)
            yield processes, serving_pids(context)
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def hidden(package: str | None, folder: Path) -> list[str]:
    """Folder to put on the path before all others, which hides what the package does not bring along."""
    if package is None:
        return []
    wanted = " ".join(line for line in requires(package) or [] if "extra ==" not in line)
    place = folder / "absent"
    place.mkdir(exist_ok=True)
    for name in _QUICKER:
        if name not in wanted and "uvicorn[standard]" not in wanted:
            (place / f"{name}.py").write_text(f'raise ImportError("{package} does not depend on {name}")\n')
    return [str(place)]


class Memory(Sampler):
    """Resident bytes of processes, looked at four times a second in a thread."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(every_seconds=0.25)
        self._processes = [psutil.Process(pid) for pid in pids]
        self.at: list[float] = []
        self.of: list[list[int]] = []

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            seen = [process.memory_info().rss for process in self._processes]
            self.at.append(time.time())
            self.of.append(seen)
