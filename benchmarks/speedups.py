"""What each speed-up of the serving process is worth: with it and without it, in turns, in one run.

    python benchmarks/speedups.py [NAME ...] [--quick]

* *packed_weights*: processor time of a ResNet-18 for one image, in batches of 1, 8 and 32.
* *early_refusal*: processor time of a refusal while the queue is full.
* *fast_path*: processor time of a prediction without its model, over HTTP, with the fast path and without it.
* *fair_connections*: connections of two serving processes when sixteen are opened at once.

Processor time stays true when others use the machine. Needs wrk (Debian's package) and the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
import uvicorn  # noqa: E402
from starlette.types import ASGIApp  # noqa: E402

from benchmarks.contenders.model import CLASSES  # noqa: E402
from benchmarks.loads.figures import machine, ratio  # noqa: E402
from benchmarks.loads.homes import image_files, make_home, serving, settings_of  # noqa: E402
from benchmarks.loads.wrk import Call, burst, need_wrk, write_script  # noqa: E402
from service.context import Context  # noqa: E402
from service.inference.engine import Engine  # noqa: E402
from service.models import registry  # noqa: E402
from service.serving.connections import PatientProtocol  # noqa: E402
from service.serving.speedups import FAIR_CONNECTIONS, SPEEDUPS  # noqa: E402
from service.serving.speedups.packed_weights import pack  # noqa: E402

SHAPE = (64, 64, 3)
N_CONNECTIONS = 16
FILES = image_files(SHAPE, 16)


def packed_weights(folder: Path, n_rounds: int) -> None:
    """Milliseconds an image."""
    settings = settings_of(folder / "home")
    digests, _ = make_home(settings, SHAPE, FILES, range(1))
    context = Context.open(settings)
    weights = registry.load_checked(context, digests[0])
    engines = {name: Engine.load(weights, 1, "cpu", pack=how) for name, how in (("with", pack), ("without", None))}
    for n_images in (1, 8, 32):
        images = np.random.default_rng(0).integers(0, 256, (n_images, *SHAPE), np.uint8)
        n_repeats = max(1, 32 // n_images)

        def measure(name: str, images: Any = images, n_repeats: int = n_repeats) -> float:
            engines[name].predict(images)
            began = time.thread_time()
            for _ in range(n_repeats):
                engines[name].predict(images)
            return (time.thread_time() - began) / n_repeats / len(images)

        tell(f"packed_weights, batches of {n_images}", in_turns(measure, n_rounds))
    context.engine.dispose()


def early_refusal(folder: Path, n_rounds: int) -> None:
    """Milliseconds a refusal."""
    process, call = imported(folder)
    protocols = {"with": process.protocol("/v1"), "without": PatientProtocol}
    app, script = process.fast_path(process.app, "/v1"), write_script(call, folder / "refusals")
    with patch.object(type(process.predictor), "n_free", 0):
        tell("early_refusal", in_turns(lambda name: cpu_of_answer(app, protocols[name], call, script), n_rounds))


def fast_path(folder: Path, n_rounds: int) -> None:
    """Milliseconds a prediction, with a model that takes no time."""
    process, call = imported(folder)
    import bentoml

    from service.app import Expunge
    from service.serving.batching import Prediction

    apps = {"with": Expunge.to_asgi(), "without": bentoml.Service.to_asgi(Expunge)}  # type: ignore[attr-defined,arg-type]
    script = write_script(call, folder / "predictions")
    probabilities = np.full(len(CLASSES), 1 / len(CLASSES), np.float32)

    async def answer(images: Any, _: object) -> list[Prediction]:
        return [Prediction(probabilities, 0, process.slot.current, 1) for _ in images]

    async def measure() -> dict[str, list[float]]:
        async with apps["without"].router.lifespan_context(apps["without"]):  # starts the process
            found: dict[str, list[float]] = defaultdict(list)
            engine = process.slot.staged or process.slot.current
            with (
                patch.object(process.batcher, "predict_together", answer),
                patch.object(type(process.predictor), "_engine", lambda _: engine),
            ):
                for _ in range(n_rounds):
                    for name, app in apps.items():
                        found[name].append(await answers_on(app, PatientProtocol, call, script))
            return found

    tell("fast_path", asyncio.run(measure()))


def fair_connections(folder: Path, n_rounds: int) -> None:
    """How many of sixteen connections the fuller of two processes holds."""
    fullest = {}
    for name, speedups in (("with", "all"), ("without", ",".join(set(SPEEDUPS) - {FAIR_CONNECTIONS}))):
        settings = settings_of(folder / name, speedups=speedups)
        make_home(settings, SHAPE, FILES, range(1))
        context = Context.open(settings)
        with serving(context) as (_, pids):
            fullest[name] = [held_by_the_fullest(settings.port, pids) for _ in range(n_rounds)]
        context.engine.dispose()
    for name, counts in fullest.items():
        print(
            f"fair_connections, {name:8s} {np.median(counts):.0f} of {N_CONNECTIONS} on one process, of two: {counts}"
        )


def held_by_the_fullest(port: int, pids: list[int]) -> int:
    """Open connections at once and count, once all were taken."""
    with ExitStack() as stack:
        for _ in range(N_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        while sum(counts := [held_by(pid, port) for pid in pids]) < N_CONNECTIONS:
            time.sleep(0.05)
    while any(held_by(pid, port) for pid in pids):
        time.sleep(0.05)
    return max(counts)


def held_by(pid: int, port: int) -> int:
    """Connections of a process at a port."""
    held = psutil.Process(pid).net_connections(kind="tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in held)


def imported(folder: Path) -> tuple[Any, Call]:
    """The serving process as BentoML would import it, in this process, and a call to it."""
    if "service.app" not in sys.modules:
        settings = settings_of(folder / "app")
        _, key = make_home(settings, SHAPE, FILES, range(1))
        for name in ("home", "port", "console_port", "log_format"):
            os.environ[f"EXPUNGE_{name.upper()}"] = str(getattr(settings, name))
        os.environ |= {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", "KEY_OF_THE_LOAD": key}
        import bentoml

        bentoml.server_context.worker_index = 1
        sys.stderr = (folder / "log").open("w")  # one line a request
    from service import app

    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {os.environ['KEY_OF_THE_LOAD']}"}
    return app._process, Call("http://127.0.0.1:1/v1/predictions", headers, FILES)


def cpu_of_answer(app: ASGIApp, protocol: type[PatientProtocol], call: Call, script: Path) -> float:
    """Seconds of this process's time for an answer."""
    return asyncio.run(answers_on(app, protocol, call, script))


async def answers_on(app: ASGIApp, protocol: type[PatientProtocol], call: Call, script: Path) -> float:
    """The same, in a running event loop: a server, and a load on it for two seconds."""
    config = uvicorn.Config(app, interface="asgi3", http=protocol, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = uvicorn.Server(config).server_state
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    here = Call(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", call.headers, call.bodies)
    await asyncio.to_thread(burst, here, script, 8, 1)  # caches are warm
    began = time.process_time()
    seen = await asyncio.to_thread(burst, here, script, 8, 2)
    took = time.process_time() - began
    server.close()
    return took / (seen.n_refused or seen.per_second * 2)


def in_turns(measure: Callable[[str], float], n_rounds: int) -> dict[str, list[float]]:
    """Figures with and without, one after the other."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(n_rounds):
        for name in ("with", "without"):
            found[name].append(measure(name))
    return found


def tell(title: str, found: dict[str, list[float]]) -> None:
    """Print medians and their ratio."""
    with_it, without = (float(np.median(found[name])) * 1000 for name in ("with", "without"))
    told = "{:.2f} ({:.2f} to {:.2f})".format(*ratio(found["without"], found["with"]))
    print(f"{title:32s} with {with_it:.3f} ms, without {without:.3f} ms: {told} times as fast", flush=True)


PARTS = {"packed_weights": packed_weights, "early_refusal": early_refusal, "fast_path": fast_path}
PARTS |= {"fair_connections": fair_connections}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    options = parser.parse_args()
    need_wrk()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="speedups-", ignore_cleanup_errors=True) as folder:
        for name in options.names or PARTS:
            PARTS[name](Path(folder), 3 if options.quick else 9)


if __name__ == "__main__":
    main()
