"""`expunge …`: everything the service does, from a shell."""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import sys
import time
from importlib import metadata
from typing import Annotated, Any

import typer

from service import __version__
from service.commands.backup import backup, restore
from service.commands.compare import compare
from service.commands.data import data_app
from service.commands.database import database_app
from service.commands.environment import Settings
from service.commands.evaluate import evaluate
from service.commands.keys import keys_app
from service.commands.methods import methods, tune
from service.commands.prepare import prepare
from service.commands.qualify import qualify
from service.commands.references import references_app
from service.commands.rerun import rerun, rerun_check
from service.commands.screen import be_printable, console, fail, sentence_of
from service.commands.training import train_and_show
from service.commands.verify import verify
from service.errors import ExpungeError, StartupError
from service.listening import listen, url_of

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Serve a face classifier that can forget.

    A first tour: `expunge demo`. Your own data, step by step:

    1. `expunge data import` – your images and their table, into the home's `data`; `expunge data check` – its rules
    2. `expunge prepare` – the production model, reference models, methods; it recommends a policy, says prices first,
       and goes on where it was. Each part has a command of its own: `expunge train`, `expunge references build`,
       `expunge tune`, `expunge qualify`
    3. `expunge keys create` – a key for each client
    4. `expunge serve` and `expunge worker` – the two processes; `expunge up` starts both

    Settings are environment variables `EXPUNGE_…`; the most important is `EXPUNGE_HOME`, the folder of everything.
    """,
)
app.add_typer(data_app, name="data")
app.add_typer(references_app, name="references")
app.add_typer(keys_app, name="keys")
app.add_typer(database_app, name="database")
app.command()(methods)
app.command()(tune)
app.command()(qualify)
app.command()(prepare)
app.command()(evaluate)
app.command()(compare)
app.command()(rerun)
app.command()(rerun_check)
app.command()(verify)
app.command()(backup)
app.command()(restore)


def _tell_version(wanted: bool) -> None:
    if wanted:
        versions = (f"{name} {metadata.version(name)}" for name in ("bentoml", "torch"))
        print(f"expunge {__version__} (Python {platform.python_version()}, {', '.join(versions)})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Say which versions these are, and end."),
    ] = False,
) -> None:
    """Options before a command."""


def main() -> None:
    """Entry point: an expected failure is one sentence and status 1, or what `stating` makes of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    be_printable()
    try:
        app()
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        fail(sentence)


@app.command()
def train(
    *,
    seed: Annotated[int, typer.Option(help="Same data, recipe, device and seed: same weights.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a model that is no better than always answering the largest class.")
    ] = False,
) -> None:
    """Train the production model on the data folder and put it into service."""
    from service.context import Context

    train_and_show(Context.open(Settings()), seed=seed, strict=strict)


@app.command()
def serve() -> None:
    """Start the serving process: predictions and the request API (needs a key: `expunge keys create`)."""
    from service.context import Context
    from service.keys.api_keys import any_usable_key
    from service.launch import require_temporary_folder, serve_command
    from service.store.engine import reading

    require_temporary_folder()
    settings = Settings()
    context = Context.open(settings)
    with reading(context.engine) as s:
        if not any_usable_key(s, now=context.now()):
            raise StartupError("Expected at least one API key; make one with `expunge keys create NAME --scope …`.")
    listen(settings).close()  # BentoML would say less of what is wrong
    command, env = serve_command(settings)
    os.execvpe(command[0], command, env)  # noqa: S606


@app.command()
def worker() -> None:
    """Start the unlearning worker with the operators' console; one per service."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: further threads of OpenBLAS would spin
    from service.launch import require_temporary_folder

    require_temporary_folder()  # before libraries that need one
    from audit.policy import load_policy
    from service.telemetry.logs import set_up_logs
    from service.worker import run_worker

    settings = Settings()
    set_up_logs(settings.log_format, level=settings.log_level)
    run_worker(settings, load_policy(settings.policy))


@app.command()
def up() -> None:
    """Start service and worker on this machine; makes data (AT&T faces), model and key if there are none."""
    from service.commands.home import prepare_home
    from service.launch import Processes, require_temporary_folder

    require_temporary_folder()
    settings = Settings()
    listen(settings).close()  # what is wrong is said now, and not after a minute
    listen(settings, "console_").close()
    secret = prepare_home(settings, console)
    if secret is not None:
        console.print("No key yet: made one with all scopes, operator; it is not shown again:")
        print(f"export EXPUNGE_KEY={secret}", flush=True)
    with Processes(settings) as processes:
        processes.start_serving()
        processes.start_worker()
        from service.commands.home import wait_ready

        wait_ready(processes, settings, console)
        _print_usage(settings)
        stop: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda n, _: stop.append(n))
        while not stop:
            processes.check()
            time.sleep(0.3)
        console.print("Stopping …")


def _print_usage(settings: Settings) -> None:
    """Where everything is, and calls to try; no key, no person and no image's name, for a journal may keep it."""
    from unlearning.faces.dataset import METADATA
    from unlearning.faces.decoding import SUFFIXES

    url, folder = url_of(settings), settings.data_folder.resolve()
    curl = 'curl -H "Authorization: Bearer $EXPUNGE_KEY"'
    is_image = " -o ".join(f"-iname '*{suffix}'" for suffix in SUFFIXES)
    image = f"$(find {shlex.quote(str(folder))} {is_image} | head -n 1)"
    lines = (
        "",
        f"Serving at   {url}/v1      (OpenAPI: {url}/v1/openapi.json)",
        f"Console at   {url_of(settings, 'console_')}/      (sign in with an API key)",
        "",
        "EXPUNGE_KEY is the secret of a key, shown when it was made; `expunge keys create` makes another.",
        f"PERSON is a user_id of {folder / METADATA}.",
        "",
        f"Predict:     {curl} -H 'Content-Type: application/octet-stream' --data-binary \"@{image}\" "
        f"{url}/v1/predictions",
        f"Erase:       {curl} -H 'Content-Type: application/json' -d '{json.dumps({'user_ids': ['PERSON']})}' "
        f"{url}/v1/erasure-requests",
        f"Status:      {curl} {url}/v1/erasure-requests",
        "",
        "Ctrl-C stops both.",
    )
    print("\n".join(lines), flush=True)


UrlOption = Annotated[str, typer.Option(envvar="EXPUNGE_URL", help="Where the service is.")]
KeyOption = Annotated[str, typer.Option(envvar="EXPUNGE_KEY", help="API key.")]
SERVICE_URL = "http://127.0.0.1:3000"


@app.command()
def erase(user_ids: list[str], key: KeyOption, url: UrlOption = SERVICE_URL) -> None:
    """File an erasure request for one or more people; prints a receipt for each."""
    answer = _call("POST", f"{url}/v1/erasure-requests", key, json={"user_ids": user_ids})
    for receipt in answer["requests"]:
        console.print(f"{receipt['id']}  {receipt['state']}  due {receipt['due_at']}")


@app.command()
def status(request_id: str, key: KeyOption, url: UrlOption = SERVICE_URL) -> None:
    """Show the state of a request."""
    console.print_json(json.dumps(_call("GET", f"{url}/v1/erasure-requests/{request_id}", key)))


def _call(method: str, url: str, key: str, **content: Any) -> dict[str, Any]:
    import httpx

    try:
        answer = httpx.request(method, url, headers={"Authorization": f"Bearer {key}"}, timeout=30, **content)
    except httpx.HTTPError as error:
        raise StartupError(f"Expected the service at {url}: {error}.") from error
    body: dict[str, Any] = answer.json()
    if answer.is_error:
        raise ExpungeError(f"{body.get('title', answer.status_code)}: {body.get('detail', '')}")
    return body


@app.command()
def demo() -> None:
    """The whole procedure on real faces: serve, erase person s31, certify, swap."""
    from service.commands.demo import run_demo

    run_demo(Settings(), console)


if __name__ == "__main__":
    main()
