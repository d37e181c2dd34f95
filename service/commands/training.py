"""Training the production model, and what is said of it. Tested in `tests/service/commands/test_prepare.py`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from service.commands.data import say_unnamed
from service.commands.screen import console, progress_bar

if TYPE_CHECKING:
    from service.context import Context
    from service.settings import Settings
    from service.training.production import Production

MOST_CLASSES = 10  # whose confusion a terminal shows


def say_methods(settings: Settings) -> None:
    """Say before a training which unlearning methods can be used with its network."""
    from unlearning.methods import METHODS
    from unlearning.models import build_empty
    from unlearning.recipes import load_recipe
    from unlearning.running import undefined

    recipe = load_recipe(settings.recipe)
    model = build_empty(recipe.architecture, 2, channels=recipe.channels, width=recipe.width)
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in undefined(model, recipe, settings.tuned).items():
        names_by_reason.setdefault(reason, []).append(name)
    n_undefined = sum(map(len, names_by_reason.values()))
    lines = [
        f"{len(METHODS) - n_undefined} of {len(METHODS)} unlearning methods are defined for {recipe.architecture}."
    ]
    lines += [f"Not defined: {', '.join(names)}. {reason}" for reason, names in names_by_reason.items()]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def train_and_show(context: Context, *, seed: int = 0, strict: bool = False) -> float:
    """Train the production model with a bar, say how good it is and what lies beside the data; gives its seconds."""
    from service.training.production import train_production

    say_methods(context.settings)
    with progress_bar() as bar:
        task = bar.add_task(f"training {context.settings.recipe}", total=None)
        done = train_production(
            context, seed=seed, strict=strict,
            on_epoch=lambda epoch, epochs, loss: bar.update(task, total=epochs, completed=epoch),
        )  # fmt: skip
    console.print(
        f"Generation {done.generation}, model version {done.digest[:16]}…, trained in {done.seconds:.1f} s: right on "
        f"{accuracy_words(done)}.",
        soft_wrap=True,
    )
    show_answers(done)
    say_unnamed(context.settings.data_folder, partial(console.print, markup=False, soft_wrap=True))
    return done.seconds


def accuracy_words(done: Production) -> str:
    """On how many images it is right, beside what always answering the largest class would be right on."""
    kinds = [(done.train, "the images it learned from")]
    if done.test.n_images:
        kinds.append((done.test, "those of held-out subjects"))
    return ", on ".join(
        f"{answers.accuracy:.1%} of {of} (largest class: {answers.largest_share:.1%})" for answers, of in kinds
    )


def show_answers(done: Production) -> None:
    """The confusion table, where the files are, and a warning if the model is poor."""
    shown, of = (done.test, "held-out subjects") if done.test.n_images else (done.train, "training")
    if len(shown.classes) <= MOST_CLASSES:
        head, *rows = shown.table()
        table = Table(*map(escape, head), title=f"Images of {of}", title_justify="left")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    console.print("Written: " + ", ".join(map(str, done.files)), markup=False, soft_wrap=True)
    if done.shortcoming:
        console.print(f"Warning: {done.shortcoming}", style="bold yellow", markup=False, soft_wrap=True)
