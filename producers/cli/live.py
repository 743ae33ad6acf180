"""How far a job is, on one line that a terminal draws again and again: a bar, the loss so far, the time left."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from producers.cli.output import safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24
KEPT = 2_000
"""Values that are remembered; of more, every second one is."""


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return a line of blocks, at most `width` of them: the means of equal parts, from the lowest to the highest."""
    count = min(width, len(values))
    edges = [len(values) * part // count for part in range(count + 1)] if count else []
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    least, most = min(means, default=0.0), max(means, default=0.0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((mean - least) / (most - least) * top) if most > least else 0] for mean in means)


def clock(seconds: float) -> str:
    """Return a time as 0:07, 12:30 or 3:04:05."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Course:
    """What the progress of one job has told: how far it is, and its losses."""

    def __init__(self) -> None:
        self.step = self.steps = 0
        self.losses: list[float] = []
        self.told: dict[str, float] = {}
        self._every, self._skipped = 1, 0

    def take(self, progress: Mapping[str, Any] | None) -> bool:
        """Take in what an event tells; return whether it tells of a step, and needs no line of its own."""
        step, steps = (progress or {}).get("step"), (progress or {}).get("steps")
        if progress is None or type(step) is not int or type(steps) is not int or steps < 1:
            return False
        if step < self.step:  # it went on from a checkpoint
            del self.losses[len(self.losses) * step // max(1, self.step) :]
        self.step, self.steps = min(step, steps), steps
        self.told = {name: float(held) for name, held in progress.items() if type(held) in (int, float)}
        if "loss" in self.told:
            self._keep(self.told["loss"])
        return True

    def _keep(self, loss: float) -> None:
        self._skipped += 1
        if self._skipped >= self._every:
            self._skipped = 0
            self.losses.append(loss)
        if len(self.losses) > KEPT:
            self.losses, self._every = self.losses[::2], self._every * 2

    def words(self) -> Iterator[str]:
        """Yield what stands beside the bar."""
        yield f"{self.step}/{self.steps}"
        if self.losses:
            yield f"loss {self.told.get('loss', self.losses[-1]):.4g} {sparkline(self.losses)}"
        if "validation_loss" in self.told:
            yield f"validation {self.told['validation_loss']:.4g}"
        if "tokens_per_s" in self.told:
            yield f"{self.told['tokens_per_s']:,.0f} tokens/s"
        if "eta_s" in self.told and self.step < self.steps:
            yield f"{clock(self.told['eta_s'])} left"
        if most := self.told.get("peak_device_bytes") or self.told.get("peak_memory_bytes"):
            yield f"{most / 1e9:.1f} GB"
        if "energy_wh" in self.told:
            yield f"{self.told['energy_wh']:.3g} Wh"
        if "cost" in self.told:
            yield f"cost {self.told['cost']:.3g}"

    def line(self) -> RenderableType:
        """Return the line to draw."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column()
        grid.add_column(overflow="crop", no_wrap=True)
        bar = ProgressBar(total=max(1, self.steps), completed=self.step, width=WIDTH)
        grid.add_row(bar, "  ".join(self.words()))
        return grid


@contextmanager
def screen(console: Console) -> Iterator[Callable[[str, Course], None]]:
    """Yield what prints a text, if there is one, above the line of a course, and draws that anew."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw(text: str, course: Course) -> None:
            if text:
                live.console.print(safe(text), highlight=False, soft_wrap=True)
            if course.steps:
                live.update(course.line(), refresh=True)

        yield draw
