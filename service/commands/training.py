"""What `expunge train` says of the model it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from service.commands.screen import console

if TYPE_CHECKING:
    from service.training.production import Production

MOST_CLASSES = 10  # whose confusion a terminal shows


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
