"""A row: what a model is asked, and what it is to answer. Rows of all files become these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
Need = Literal["completion", "prompt"]


@dataclass(frozen=True, slots=True)
class Row:
    """One example: the prompt (text or chat), the completion to learn or to compare with, and where it stood."""

    prompt: Prompt
    completion: str
    id: str
    line: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def plain(self) -> dict[str, Any]:
        """Return it as the one shape that registered data sets have."""
        if isinstance(self.prompt, str):
            asked = {"prompt": self.prompt, "completion": self.completion} if self.prompt else {"text": self.completion}
            return {"id": self.id, **asked}
        answer = [{"role": "assistant", "content": self.completion}] if self.completion else []
        return {"id": self.id, "messages": [*map(dict, self.prompt), *answer]}


def texts(row: Row) -> Iterator[str]:
    """Yield everything that is read of a row."""
    if isinstance(row.prompt, str):
        yield row.prompt
    else:
        yield from (message["content"] for message in row.prompt)
    yield row.completion
