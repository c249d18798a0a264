"""Passes in which some nodes are computed and all others are set to reference values.

The references: the activations under the counterfactual prompt, their mean over the counterfactuals of the pairs with
the same template and length, or zero. Tokens and embeddings are those of the clean prompt; a node of the circuit is
computed from what reaches it in the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._core.precision import at_least_float32
from kn_lens.circuits.orders import ALWAYS, Ranks
from kn_lens.circuits.pairs import PromptPairs, map_pairs
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import Budget, ComponentValues, HookFn, Host, hook_z, run_components

Reference = Literal["counterfactual", "mean", "zero"]


class References:
    """The values that nodes outside a circuit are set to.

    Args:
        host: the model.
        pairs: all pairs, over which means are taken.
        reference: which values.
        budget: the memory of the passes that means take.

    Raises:
        ArgumentError: an unknown reference.
    """

    def __init__(self, host: Host, pairs: PromptPairs, reference: Reference, budget: Budget) -> None:
        if reference not in get_args(Reference):
            hint = did_you_mean(reference, get_args(Reference))
            raise ArgumentError(f"reference={reference!r}; expected {' or '.join(get_args(Reference))}.{hint}")
        self.host = host
        self.reference = reference
        self._means: dict[tuple[str, int], list[Tensor]] = {}
        if reference == "mean":
            self._sum_up(pairs, budget)

    def of(self, pairs: PromptPairs) -> ComponentValues:
        """Return the values for some of the pairs, at their positions. Cost: at most a forward pass for each."""
        prompts = pairs.counterfactual
        if self.reference == "mean":
            n_pos = prompts.tokens.shape[1]
            rows = []
            for form in _forms(pairs):
                rows.append([_padded(part, n_pos) for part in self._means[form]])
            return ComponentValues.of_tensors(list(map(torch.stack, zip(*rows, strict=True))))
        values, _ = run_components(self.host, prompts.tokens, prompts.attention_mask, prompts.read_pos)
        if self.reference == "zero":
            return values.map(torch.zeros_like)
        return values

    def _sum_up(self, pairs: PromptPairs, budget: Budget) -> None:
        counts: dict[tuple[str, int], int] = {}

        def run(chunk: PromptPairs) -> tuple[list[tuple[str, int]], ComponentValues]:
            prompts = chunk.counterfactual
            values, _ = run_components(self.host, prompts.tokens, prompts.attention_mask, prompts.read_pos)
            return _forms(chunk), values

        for _, (forms, values) in map_pairs(budget, pairs, 1, run):
            for row, form in enumerate(forms):
                parts = [part[row, : form[1]] for part in values.tensors]
                if form in self._means:
                    parts = list(map(torch.add, self._means[form], parts))
                self._means[form] = parts
                counts[form] = counts.get(form, 0) + 1
        for form, count in counts.items():
            self._means[form] = [part / count for part in self._means[form]]


def _forms(pairs: PromptPairs) -> list[tuple[str, int]]:
    """Return template and length of each pair."""
    return list(zip(pairs.clean.template, pairs.clean.length.tolist(), strict=True))


def _padded(part: Float[Tensor, "pos ..."], n_pos: int) -> Float[Tensor, "pos ..."]:
    padded = part.new_zeros(n_pos, *part.shape[1:])
    padded[: len(part)] = part
    return padded


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Circuits that are tried on some pairs: one pass each.

    Attributes:
        order: which of several orders of nodes gives the circuit.
        pair: the pair.
        size: the number of nodes of the circuit.
        without: whether the circuit's nodes are those that are set, instead of all others.
    """

    order: Int[Tensor, " trial"]
    pair: Int[Tensor, " trial"]
    size: Int[Tensor, " trial"]
    without: Bool[Tensor, " trial"]

    @classmethod
    def of(cls, trials: Sequence[tuple[int, int, int, bool]], device: torch.device) -> "Trials":
        """Return trials of (order, pair, size, without)."""
        order, pair, size = torch.tensor([trial[:3] for trial in trials], device=device).reshape(-1, 3).unbind(1)
        return cls(
            order=order,
            pair=pair,
            size=size,
            without=torch.tensor([trial[3] for trial in trials], dtype=torch.bool, device=device),
        )

    def __len__(self) -> int:
        return len(self.size)

    def select(self, rows: slice) -> "Trials":
        """Return some of the trials."""
        return Trials(order=self.order[rows], pair=self.pair[rows], size=self.size[rows], without=self.without[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablation:
    """Some pairs, the references of their nodes, and orders of these.

    Attributes:
        host: the model.
        pairs: the pairs.
        references: for each pair.
        orders: the orders.
        rows_per_pass: upper bound of the trials of a pass.
    """

    host: Host
    pairs: PromptPairs
    references: ComponentValues
    orders: Sequence[Ranks]
    rows_per_pass: int

    def logit_differences(self, trials: Trials) -> Float[Tensor, " trial"]:
        """Return the logit difference under each trial. Cost: a forward pass for each."""
        stacked = torch.stack(list(self.orders))
        values = []
        for start in range(0, len(trials), self.rows_per_pass):
            part = trials.select(slice(start, start + self.rows_per_pass))
            pairs = self.pairs.select(part.pair)
            prompts = pairs.clean
            hooks: list[tuple[str, HookFn]] = []
            for layer in range(self.host.n_layers):
                hooks += self._hooks(layer, part, stacked)
            with torch.no_grad():
                logits = self.host.logits(prompts.tokens, prompts.attention_mask, prompts.read_pos, hooks)
            values.append(pairs.logit_difference(logits))
        return torch.cat(values)

    def gains(self, order: int, sizes: Int[Tensor, " pair"]) -> Float[Tensor, "pair n_layers pos node"]:
        """Return what each node outside a circuit of each pair would add to the logit difference, to first order.

        That is (computed activation - reference) . gradient, in the pass of the circuit. Nodes of the circuit get 0.
        Cost: a forward and a backward pass for each pair.
        """
        parts = []
        stacked = torch.stack(list(self.orders))
        every = torch.arange(len(self.pairs), device=self.host.device)
        for rows in every.split(self.rows_per_pass):
            trials = Trials(
                order=torch.full_like(rows, order),
                pair=rows,
                size=sizes[rows],
                without=torch.zeros_like(rows, dtype=torch.bool),
            )
            pairs = self.pairs.select(rows)
            prompts = pairs.clean
            moved: dict[str, Tensor] = {}
            left: dict[str, Tensor] = {}
            first = self.host.resid_pre(0)
            hooks: list[tuple[str, HookFn]] = [(first, lambda value, hook: value.detach().clone().requires_grad_())]
            for layer in range(self.host.n_layers):
                for name, hook_fn in self._hooks(layer, trials, stacked):
                    hooks.append((name, _recorded(hook_fn, name, moved, left)))
            with torch.enable_grad():
                logits = self.host.logits(prompts.tokens, prompts.attention_mask, prompts.read_pos, hooks)
                total = pairs.logit_difference(logits).sum()
                gradients = torch.autograd.grad(total, list(left.values()))
            gradient = dict(zip(left, gradients, strict=True))
            by_layer = []
            for layer in range(self.host.n_layers):
                post, z = self.host.hook_post(layer), hook_z(layer)
                neurons = at_least_float32(moved[post]) * gradient[post]
                heads = (at_least_float32(moved[z]) * gradient[z]).sum(-1)
                by_layer.append(torch.cat([neurons, heads], dim=-1))
            parts.append(torch.stack(by_layer, dim=1))
        return torch.cat(parts)

    def _hooks(self, layer: int, trials: Trials, orders: Int[Tensor, "order pair n_layers pos node"]) -> list:
        """Return the hooks that set the nodes of a layer outside the circuits of some trials."""
        references = self.references

        def kept() -> Bool[Tensor, "trial pos node"]:
            ranks = orders[trials.order, trials.pair, layer]
            inside = ranks < trials.size[:, None, None]
            return (ranks == ALWAYS) | (inside ^ trials.without[:, None, None])

        def set_neurons(value: Float[Tensor, "trial pos d_mlp"], hook: object) -> Tensor:
            reference = references.neurons[layer][trials.pair]
            return torch.where(kept()[..., : value.shape[-1]], value, reference)

        def set_heads(value: Float[Tensor, "trial pos n_heads d_head"], hook: object) -> Tensor:
            reference = references.heads[layer][trials.pair]
            return torch.where(kept()[..., -value.shape[2] :, None], value, reference)

        return [(hook_z(layer), set_heads), (self.host.hook_post(layer), set_neurons)]


def _recorded(hook_fn: HookFn, name: str, moved: dict[str, Tensor], left: dict[str, Tensor]) -> HookFn:
    """Return a hook that does the same, and keeps what it changes and what it leaves."""

    def recording(value: Tensor, hook: object) -> Tensor:
        result = hook_fn(value, hook)
        assert result is not None
        left[name] = result if result.requires_grad else result.requires_grad_()
        moved[name] = (value - result).detach()
        return left[name]

    return recording


def empty_and_whole(ablation: Ablation) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Return the logit difference of each pair with all nodes set, and with none."""
    n_pairs = len(ablation.pairs)
    whole = int(max(int(ranks.max()) for ranks in ablation.orders)) + 1
    trials = [(0, pair, size, False) for size in (0, whole) for pair in range(n_pairs)]
    values = ablation.logit_differences(Trials.of(trials, ablation.host.device))
    return values[:n_pairs], values[n_pairs:]
