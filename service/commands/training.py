"""What `expunge train` says of the model it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from service.commands.screen import console

if TYPE_CHECKING:
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
