"""The processes of one training: each takes a share of every batch, and they decide together.

The first of them speaks for all: it tells of progress, hears whether to stop, and hands checkpoints over. What it
decides reaches the others in the one sum that follows every step, so that all of them save, or stop, after the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workers.llm.resume import Found, Keeper


class Team(Protocol):
    """Who trains together."""

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""

    def sum(self, *numbers: int) -> list[int]:
        """Return each number, summed over all."""

    def share(self, value: Any) -> Any:
        """Return what the first one gave."""

    def wait(self) -> None:
        """Wait until all are here."""


class Alone:
    """A training in one process."""

    first = True

    def sum(self, *numbers: int) -> list[int]:
        return list(numbers)

    def share(self, value: Any) -> Any:
        return value

    def wait(self) -> None: ...


class Together:
    """One of several processes; they talk through torch's default process group."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *numbers: int) -> list[int]:
        import torch
        from torch import distributed

        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        found = torch.tensor(numbers, dtype=torch.int64, device=device)
        distributed.all_reduce(found)
        return [int(number) for number in found.tolist()]

    def share(self, value: Any) -> Any:
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        from torch import distributed

        distributed.barrier()


def pooled(numbers: Any) -> Any:
    """Return a tensor of numbers, each summed over all processes of this training, as float64.

    All of them must ask. Where there is one, they are its own.
    """
    from torch import distributed

    found = numbers.detach().double()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(found)
    return found


@dataclass(frozen=True, slots=True)
class Brought:
    """A checkpoint that the first one fetched to where all can read it."""

    step: int
    facts: Mapping[str, Any]


class Shared:
    """The checkpoints as one of several processes sees them: the first one's, in a folder that all can read."""

    def __init__(self, team: Team, keeper: Keeper | None) -> None:
        self._team, self._keeper = team, keeper

    @property
    def busy(self) -> bool:
        return self._keeper is not None and self._keeper.busy

    def newest(self, into: Path, fits: Callable[[Mapping[str, Any]], bool]) -> Brought | None:
        return self._brought(self._keeper.newest(into, fits) if self._keeper else None)

    def at(self, step: int, into: Path) -> Brought | None:
        return self._brought(self._keeper.at(step, into) if self._keeper else None)

    def keep(self, step: int, folder: Path, **facts: Any) -> None:
        if self._keeper is not None:
            self._keeper.keep(step, folder, **facts)

    def flush(self) -> None:
        if self._keeper is not None:
            self._keeper.flush()

    def _brought(self, found: Found | None) -> Brought | None:
        told = self._team.share(None if found is None else (found.step, dict(found.facts)))
        return None if told is None else Brought(*told)
