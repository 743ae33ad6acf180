"""Sharded weights: each process keeps its part of every tensor, and has a whole block only while it computes it.

So do gradients and the optimizer (fully sharded data parallel, Zhao et al. 2023, arXiv:2304.11277). This is torch's own
`fully_shard`: accelerate shards on accelerators only, and what is tested on CPUs is to be what runs there. Weights come
in before they are sharded, and the first process gathers what goes out, so every file is that of a whole model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # what the Trainer calls them


def shard(module: Any, device: str) -> None:
    """Shard a module's weights over all processes, block by block; `device` is `cpu` or `cuda`."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    whole = module.get_base_model() if hasattr(module, "get_base_model") else module
    kinds = set(whole._no_split_modules or ())
    for layer in list(module.modules()):
        if type(layer).__name__ in kinds:
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def gather(module: Any) -> dict[str, Any]:
    """Return an adapter, or all of a whole model, by names as in memory; nothing but in the first process."""
    from torch.distributed.checkpoint import state_dict as states

    adapter = hasattr(module, "peft_config")
    options = states.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter)
    found: dict[str, Any] = states.get_model_state_dict(module, options=options)
    firsts: dict[int, str] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if (first := firsts.setdefault(id(tensor), name)) != name and first in found:
            found[name] = found[first]  # tied: one tensor again, which is written once
    return found


def pack(module: Any, optimizer: Any) -> dict[str, Any]:
    """Return the whole state of an optimizer of sharded weights; nothing but in the first process."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = states.get_optimizer_state_dict(module, optimizer, options=options)
    return found


def unpack(module: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its part of what `pack` returned."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True)
    states.set_optimizer_state_dict(module, optimizer, state, options=options)


def sharded(kind: Any) -> Any:
    """Return the class of Trainer that keeps its module sharded."""
    import torch

    class Sharded(kind):  # type: ignore[misc]
        """Shards once the weights have come in; what it saves is whole."""

        def create_optimizer(self, *given: Any, **rest: Any) -> Any:
            shard(self.model, self.args.device.type)
            self.model._is_accelerate_prepared = True  # or accelerate would have each process keep the whole
            return super().create_optimizer(*given, **rest)

        def compute_loss_context_manager(self) -> Any:
            return self.accelerator.autocast()  # which accelerate puts around modules that it prepares

        def _clip_grad_norm(self, model: Any) -> Any:
            return super()._clip_grad_norm(model).full_tensor()

        def weights(self) -> dict[str, Any]:
            return gather(self.model)

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            self._save(output_dir, state_dict=self.weights())

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if self.optimizer is None:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:  # it is over, and its files are wanted as they are
                self.best = Path(resume_from_checkpoint)

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            state = pack(self.model, self.optimizer.optimizer)
            if self.args.should_save:
                torch.save(state, Path(output_dir) / OPTIMIZER)
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
                unpack(self.model, self.optimizer.optimizer, state)
                self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    return Sharded


def replace(out: Path, folder: Path) -> None:
    """Put the weights' files of a checkpoint in the place of those in `out`."""
    for old in out.glob("*.safetensors*"):
        old.unlink()
    for path in folder.glob("*.safetensors*"):
        shutil.copyfile(path, out / path.name)
