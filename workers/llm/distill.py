"""Distillation: a student learns from the rows, and from what its teacher says of every token of them.

`(1 - a) CE + a T² KL(teacher ‖ student)` over the learnt tokens, both softened by the temperature T (Hinton et al.
2015, arXiv:1503.02531). The teacher is whole in memory beside the student, in the same precision, and learns nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.errors import InvalidError
from workers.llm import model as models
from workers.llm.objective import steered, whole
from workers.llm.pretrain import digest
from workers.llm.settings import TrainParams
from workers.llm.team import pooled
from workers.llm.validation import shifted


def fetch(path: Path, student: models.Model, params: TrainParams, dtype: models.Precision) -> models.Model:
    """Load a teacher where the student is; `dtype` is what it computes in.

    Raises what `models.load` does, and `InvalidError` (TAPE-1002) for a tokenizer that is not the student's, or a
    teacher that takes shorter rows.
    """
    teacher = models.load(path, device=params.device, dtype=dtype, threads=params.threads)
    if digest(teacher.tokenizer) != digest(student.tokenizer):
        raise InvalidError(
            f"the teacher's tokenizer is not the student's: {len(teacher.tokenizer)} tokens and"
            f" {len(student.tokenizer)}, or others",
            field="teacher",
            hint="make a student for it: `method: pretrain` with the teacher as `tokenizer`",
        )
    longest = min(params.max_length, student.context)
    if teacher.context < longest:
        raise InvalidError(
            f"the teacher takes {teacher.context} tokens, and a row may have {longest}", field="max_length",
            hint=f"set max_length to {teacher.context}",
        )  # fmt: skip
    teacher.module.requires_grad_(False)
    return teacher


def divergence(teacher: Any, student: Any, temperature: float) -> Any:
    """Return KL(teacher ‖ student) of each token, in nats; logits are (tokens, vocabulary), softened here."""
    from torch.nn import functional

    said = functional.log_softmax(teacher / temperature, dim=-1)
    heard = functional.log_softmax(student / temperature, dim=-1)
    return (said.exp() * (said - heard)).sum(dim=-1)


class Lesson:
    """The objective of a distillation; tells `divergence`: nats per learnt token, at its temperature."""

    def __init__(self, teacher: models.Model, temperature: float, part: float) -> None:
        self.teacher, self.temperature, self.part = teacher.module, temperature, part
        self.vocabulary = len(teacher.tokenizer)
        self.apart = 0.0

    def __call__(self, module: Any, inputs: dict[str, Any], together: Any) -> tuple[Any, Any]:
        """Return the loss: its value is the cross entropy, its gradient that of the whole objective."""
        import torch
        from torch.nn import functional

        labels = inputs["labels"]
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = module(**rest)
        logits, targets = shifted(outputs.logits, labels)
        count = whole(targets, together)
        loss = functional.cross_entropy(logits, targets, reduction="sum") / count
        with torch.no_grad():
            told, _ = shifted(self.teacher(**rest).logits, labels)
        # the numbers beyond the vocabulary, where a model has such, mean nothing and may differ in count
        apart = divergence(told[:, : self.vocabulary], logits[:, : self.vocabulary], self.temperature).sum() / count
        self.apart += float(apart.detach())
        wanted = (1 - self.part) * loss + self.part * self.temperature**2 * apart
        return steered(loss, wanted), outputs

    def take(self) -> dict[str, Any]:
        """Return the step's divergence."""
        import torch

        apart, self.apart = self.apart, 0.0
        nats, processes = pooled(torch.tensor([apart, 1.0], device=self.teacher.device)).tolist()
        return {"divergence": round(nats / processes, 6)}
