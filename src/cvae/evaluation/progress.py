"""Progress of an evaluation: a bar on a terminal, a line per finished claim in a log."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column


class ClaimProgress:
    """Progress display: the current claim, its number, and the time left for its current step.

    Args:
        bar: the bar on a terminal; None to print a line when a claim ends.
        console: where to print.
    """

    def __init__(self, bar: Progress | None, console: Console) -> None:
        self._bar, self._console = bar, console
        self._task = None if bar is None else bar.add_task("", total=1.0)
        self._claim = self._step = ""

    def start_claim(self, name: str, number: int, count: int) -> None:
        """Show the name of the next claim and its number, from 1 to ``count``."""
        self._claim = f"{name} ({number} of {count})"
        self.update("", 0.0)

    def update(self, step: str, share: float) -> None:
        """Show the current step of the claim and the fraction of it that is done."""
        if self._bar is None or self._task is None:
            return
        if step != self._step:  # the time left is that of this step
            self._step = step
            self._bar.reset(self._task, description=f"{self._claim}: {step}")
        self._bar.update(self._task, completed=share)

    def end_claim(self, outcome: str) -> None:
        """Print the claim and its outcome, such as its seconds, unless there is a bar."""
        if self._bar is None:
            self._console.print(f"{self._claim}: {outcome}", highlight=False, soft_wrap=True)


@contextmanager
def claim_progress(console: Console | None = None) -> Iterator[ClaimProgress]:
    """Show progress on a console, by default on stderr, because stdout gets the table."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield ClaimProgress(None, console)
        return
    text = TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1))
    columns = (text, BarColumn(16), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        yield ClaimProgress(bar, console)
