"""How a mixture of experts spreads its tokens: the loss that evens the load, and what is told of each step.

Load, entropy and dropped tokens are counted where the experts are called, from what they are called with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workers.llm.objective import steered, whole
from workers.llm.team import pooled
from workers.llm.validation import shifted


@dataclass(slots=True)
class Counts:
    """Sums over the tokens of a step; `load` is one row of numbers for each layer."""

    load: Any = 0
    entropy: float = 0.0
    tokens: int = 0
    dropped: int = 0
    balance: float = 0.0


@dataclass(slots=True)
class Routes:
    """What the routers of one forward pass said: for each layer probabilities (tokens, experts), and the chosen."""

    probabilities: dict[int, Any] = field(default_factory=dict)
    chosen: dict[int, Any] = field(default_factory=dict)


class Router:
    """Cross entropy, and the load-balancing loss of Fedus et al. (arXiv:2101.03961, equations 4 to 6) beside it.

    That loss is taken of each layer, and their mean is `experts_per_token` where the load is even. The library's own
    takes it of all layers together, so that one layer's load makes up for another's. Its weight is the architecture's
    `balance`.
    """

    def __init__(self, module: Any) -> None:
        self.weight = float(module.config.router_aux_loss_coef)
        self.experts = int(module.config.num_local_experts)
        self.routes, self.counts = Routes(), Counts()
        for number, layer in enumerate(module.model.layers):
            layer.mlp.gate.register_forward_hook(self._gated(number))
            layer.mlp.experts.register_forward_pre_hook(self._routed(number))

    def _gated(self, layer: int) -> Any:
        def heard(gate: Any, _given: Any, said: tuple[Any, ...]) -> None:
            if gate.training:  # and not validated
                self.routes.probabilities[layer] = said[0].float().softmax(dim=-1)

        return heard

    def _routed(self, layer: int) -> Any:
        def heard(experts: Any, given: tuple[Any, ...]) -> None:
            if experts.training:
                self.routes.chosen[layer] = given[1].detach()

        return heard

    def __call__(self, module: Any, inputs: dict[str, Any], together: Any) -> tuple[Any, Any]:
        """Return the loss: its value is the cross entropy, its gradient that of both."""
        from torch.nn import functional

        labels = inputs["labels"]
        outputs = module(**{name: value for name, value in inputs.items() if name != "labels"})
        logits, targets = shifted(outputs.logits, labels)
        count = whole(targets, together)
        loss = functional.cross_entropy(logits, targets, reduction="sum") / count
        balance = self._balance(inputs["attention_mask"].reshape(-1).bool(), len(targets), count)
        return steered(loss, loss + self.weight * balance), outputs

    def _balance(self, real: Any, learnt: int, step: Any) -> Any:
        """Return the balancing loss of a batch, and count what was routed.

        `real` says which tokens are no padding, `learnt` how many are learnt, `step` what a step's are divided by.
        Several processes share a batch: the load is that of all, and what each returns comes to that batch's loss.
        """
        import torch

        (routes, self.routes), sums = (self.routes, Routes()), []
        entropy = dropped = torch.zeros((), dtype=torch.float64, device=real.device)
        loads = []
        for layer, chosen in routes.chosen.items():
            routed, seen = chosen[real], routes.probabilities[layer][real]
            # a library marks a token that is not routed by a number that no expert has
            taken = (routed >= 0) & (routed < self.experts)
            loads.append(torch.bincount(routed[taken], minlength=self.experts))
            sums.append(seen.sum(dim=0))
            entropy = entropy + torch.special.entr(seen.detach()).sum().double() / len(routes.chosen)
            dropped = dropped + (~taken.any(dim=-1)).sum()
        seen = torch.stack(sums)
        mine = torch.tensor([int(real.sum()), learnt, 1], device=real.device)
        told = pooled(torch.cat([torch.stack([entropy, dropped]), mine, *loads, seen.detach().flatten()]))
        tokens, count, processes = told[2:5].tolist()
        load, said = (half.view_as(seen) for half in told[5:].chunk(2))
        self.counts.load, self.counts.tokens = self.counts.load + load, self.counts.tokens + int(tokens)
        self.counts.entropy += float(told[0])
        self.counts.dropped += int(told[1])
        even = self.experts / len(seen) / tokens**2 * float(count / step)
        self.counts.balance += even * float((load * said).sum()) / processes
        return even * (load.to(seen.dtype) * seen).sum()

    def take(self) -> dict[str, Any]:
        """Return the step's numbers.

        `expert_load`: the share of each expert in all that was routed, mean of the layers; `load_max`: the highest
        share of any in one layer; `load_entropy`: of the shares in a layer, in nats, mean of the layers (even is the
        logarithm of the number of experts); `router_entropy`: of what a router says of one token, in nats, mean of
        tokens and layers; `dropped_tokens`: tokens of a layer that no expert took; `balance_loss`: the auxiliary loss,
        before its weight.
        """
        import torch

        counts, self.counts = self.counts, Counts()
        shares = counts.load / counts.load.sum(dim=-1, keepdim=True)
        return {
            "expert_load": [round(float(one), 4) for one in shares.mean(dim=0)],
            "load_max": round(float(shares.max()), 4),
            "load_entropy": round(float(torch.special.entr(shares).sum(dim=-1).mean()), 6),
            "router_entropy": round(counts.entropy / max(1, counts.tokens), 6),
            "dropped_tokens": counts.dropped,
            "balance_loss": round(counts.balance, 6),
        }
