"""What a training makes small where that is more than the cross entropy, and how it is told apart from it.

Whatever is learnt from, the loss that is told is the cross entropy, in nats per learnt token: it compares between
methods. The rest is told under its own name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from workers.llm import validation


class Objective(Protocol):
    """What is learnt from a batch; `together` counts the learnt tokens of the whole step, None: this is all of it."""

    def __call__(self, module: Any, inputs: dict[str, Any], together: Any) -> tuple[Any, Any]:
        """Return the loss, a scalar of the batch's share in the step, and the module's outputs."""
        ...

    def take(self) -> dict[str, Any]:
        """Return what is to be told of the step that ended, and begin the next."""
        ...


def whole(targets: Any, together: Any) -> Any:
    """Return what sums over the targets are divided by: the learnt tokens of the whole step, and at least one."""
    return max(1, len(targets)) if together is None else together


def steered(loss: Any, objective: Any) -> Any:
    """Return a scalar with the value of the one and the gradient of the other."""
    return loss.detach() + objective - objective.detach()


def trainer(objective: Objective | None) -> Any:
    """Return the class of Trainer that learns from the objective, or from the module's own loss without one."""
    from transformers import Trainer

    class Learner(Trainer):  # type: ignore[misc]
        """Validates by tokens, and brings weights back whatever names they were saved under."""

        control: Any
        best: Path | None = None
        """Where the weights that were chosen lie, if they are not in the module."""

        def weights(self) -> dict[str, Any] | None:
            """Return what is written of the module; None where it holds that itself."""
            return None

        def evaluate(self, *_: Any, **rest: Any) -> dict[str, float]:
            workers, follower = self.accelerator, self.callback_handler

            def moved() -> None:
                self.control = follower.on_prediction_step(self.args, self.state, self.control)

            with self.compute_loss_context_manager():
                found = validation.loss(
                    self.model, self.eval_dataset, self.data_collator, size=self.args.per_device_eval_batch_size,
                    place=(workers.num_processes, workers.process_index), moved=moved,
                )  # fmt: skip
            metrics = {"eval_loss": found}
            self.control = follower.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not restore(self.model, Path(resume_from_checkpoint)):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    if objective is None:
        return Learner
    goal = objective

    class Taught(Learner):
        """Learns from an objective of our own; which is scaled to the step already, however many batches make one."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.model_accepts_loss_kwargs = True
            # a GPT-2 does not say so, and the first label of a text, which nothing predicts, would be counted
            self._loss_shifts_labels = True

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            together, devices = num_items_in_batch, self.accelerator.num_processes
            if together is not None and devices > 1:
                together = together / devices  # of all of them, and their gradients are averaged
            loss, outputs = goal(model, inputs, together)
            return (loss, outputs) if return_outputs else loss

    return Taught


def restore(module: Any, folder: Path) -> bool:
    """Bring a whole model's weights back from a folder where they have other names than in the module.

    The experts of a mixture are one tensor in memory and many in a file. transformers 5.23 knows that when it loads a
    model, but its Trainer passes over names that it does not find, and would go on with the experts as they are.
    Returns whether there was such a name; where there is none, nothing is done.
    """
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    if names <= set(module.state_dict()):
        return False
    kept = type(module).from_pretrained(folder, dtype=module.dtype, use_safetensors=True, local_files_only=True)
    module.load_state_dict(kept.state_dict())
    return True
