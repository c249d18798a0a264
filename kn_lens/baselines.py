"""What integrated gradients is compared with: simpler scores of the same neurons, and the truth they all approximate.

Each function scores every neuron of one layer under some prompts (a ``Site``). With ``w`` the clean
activation at the read position and ``P`` the output (``P(v)``: with the activation replaced by ``v``):

    activation             w_i                          the paper's baseline; mean over the answer's rows
    gradient_x_activation  w_i * dP(w)/dw_i             ablation to first order
    ablation               P(w) - P(w with w_i = 0)     the truth
    log_prob_gain          log p(answer | r + b + w_i W_out[i]) - log p(answer | r + b)
                                                        Yu & Ananiadou (2024), in nats

In the last one, ``r`` is the residual stream that the MLP adds to, ``b`` its output bias, and ``p(. | x)`` reads
``x`` with the model's own final layers, the blocks above being left out: neuron i keeps its activation, and the others
of its layer are silent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from kn_lens.engine import Site


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """What a method returns for a site; the fields are slices of those of ``Attribution``."""

    scores: Float[Tensor, "batch d_mlp"]
    expected: Float[Tensor, " batch"]
    n_points: Int[Tensor, " batch"] | int


Indices = Int[Tensor, " chosen"] | None
"""The neurons to score; None for all."""


def activation(site: Site, indices: Indices) -> LayerScores:
    """Score a neuron by its activation, averaged over the answer's rows; no pass beyond the clean one."""
    n_rows = site.per_prompt(torch.ones_like(site.post[:, :1]))
    return LayerScores(scores=site.per_prompt(site.post) / n_rows, expected=_unknown(site), n_points=0)


def gradient_x_activation(site: Site, indices: Indices) -> LayerScores:
    """Score by the gradient at the clean activation, times the activation.

    A forward pass per layer, and for all layers together one with its backward pass.
    """
    silent = site.outputs(site.everyone, torch.zeros_like(site.post))
    scores = site.per_prompt(site.post * site.to_post(site.clean_gradient))
    return LayerScores(scores=scores, expected=site.clean - silent, n_points=1)


def ablation(site: Site, indices: Indices) -> LayerScores:
    """Score by what switching the neuron off takes away; one forward pass per (row, neuron)."""
    without = _neuron_by_neuron(site, indices, lambda alone: site.post - alone)
    scores = rearrange(site.clean, "batch -> batch 1") - without
    return LayerScores(scores=scores, expected=_unknown(site), n_points=_n_chosen(site, indices))


def log_prob_gain(site: Site, indices: Indices) -> LayerScores:
    """Score by what the neuron's value vector alone adds to the answer's log-probability read off after its layer.

    One forward pass per (row, neuron). The engine's output must be the log-probability.
    """
    alone = _neuron_by_neuron(site, indices, lambda alone: alone, early=True)
    silent = site.outputs(site.everyone, torch.zeros_like(site.post), early=True)
    scores = alone - rearrange(silent, "batch -> batch 1")
    return LayerScores(scores=scores, expected=_unknown(site), n_points=_n_chosen(site, indices) + 1)


BASELINES: dict[str, Callable[[Site, Indices], LayerScores]] = {
    function.__name__: function for function in (activation, gradient_x_activation, ablation, log_prob_gain)
}


def _unknown(site: Site) -> Float[Tensor, " batch"]:
    return torch.full_like(site.clean, float("nan"))


def _n_chosen(site: Site, indices: Indices) -> int:
    return site.post.shape[-1] if indices is None else len(indices)


def _neuron_by_neuron(
    site: Site, indices: Indices, change: Callable[[Tensor], Tensor], *, early: bool = False
) -> Float[Tensor, "batch d_mlp"]:
    """Return the outputs with ``change(w_i e_i)`` as the activation for each chosen neuron i; NaN for the others."""
    n_prompts, d_mlp = len(site.clean), site.post.shape[-1]
    chosen = torch.arange(d_mlp, device=site.post.device) if indices is None else indices
    outputs = site.clean.new_full((n_prompts, d_mlp), float("nan"))
    # As many neurons at once as leave their activations of the size of a pass.
    at_once = max(1, site.rows_per_pass // len(site.post))
    for some in chosen.split(at_once) if len(chosen) else ():
        alone = site.post * one_hot(some, d_mlp)[:, None]
        values = site.outputs(
            repeat(site.everyone, "batch -> (neuron batch)", neuron=len(some)),
            rearrange(change(alone), "neuron row d_mlp -> (neuron row) d_mlp"),
            early=early,
        )
        outputs[:, some] = rearrange(values, "(neuron batch) -> batch neuron", neuron=len(some))
    return outputs
