"""What integrated gradients is compared with: simpler scores of the same neurons, and the truth they all approximate.

Each function scores every neuron of one layer for the prompts of one engine (a ``Site``). With ``w`` the clean
activation at the read position and ``P`` the output (``P(v)``: with the activation replaced by ``v``):

    activation             w_i                                             paper's baseline; mean over the answer's
    rows gradient_x_activation  w_i * dP(w)/dw_i                                first-order ablation ablation
    P(w) - P(w with w_i = 0)                        the truth log_prob_gain          log p(answer | r + b + w_i
    W_out[i]) - log p(answer | r + b)        Yu & Ananiadou (2024), nats

In the last one, ``r`` is the residual stream that the MLP adds to, ``b`` its output bias, and ``p(. | x)`` reads
``x`` with the model's own final layers, the blocks above being left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Site:
    """One layer, under the prompts of one engine.

    Attributes:
        engine: runs the model.
        layer: zero-based.
        post: clean ``hook_post`` at the read position.
        clean: clean output of each prompt.
        indices: the neurons to score; None for all.
    """

    engine: Engine
    layer: int
    post: Float[Tensor, "row d_mlp"]
    clean: Float[Tensor, " batch"]
    indices: Int[Tensor, " chosen"] | None = None

    @property
    def prompt_ids(self) -> Int[Tensor, " batch"]:
        """Every prompt, in order."""
        return torch.arange(len(self.clean), device=self.clean.device)

    def per_prompt(self, rows: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "batch d_mlp"]:
        """Sum over the rows of each prompt's answer."""
        total = rows.new_zeros(len(self.clean), rows.shape[-1])
        return total.index_add(0, self.engine.prompts.prompt_index, rows)

    def nan(self, *trailing: int) -> Float[Tensor, "batch ..."]:
        """Return a tensor of NaN, "not computed", with one row a prompt."""
        return self.clean.new_full((len(self.clean), *trailing), float("nan"))


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """What a method returns for a site; the fields are slices of those of ``Attribution``."""

    scores: Float[Tensor, "batch d_mlp"]
    expected: Float[Tensor, " batch"]
    n_points: Int[Tensor, " batch"] | int


def activation(site: Site) -> LayerScores:
    """Score a neuron by its activation, averaged over the answer's rows; no pass beyond the clean one."""
    rows_per_prompt = site.per_prompt(torch.ones_like(site.post[:, :1]))
    return LayerScores(scores=site.per_prompt(site.post) / rows_per_prompt, expected=site.nan(), n_points=0)


def gradient_x_activation(site: Site) -> LayerScores:
    """Score by the gradient at the clean activation, times the activation; two forward passes and one backward."""
    _, gradient = site.engine.gradients(site.layer, site.prompt_ids, site.post)
    silent = site.engine.outputs(site.layer, site.prompt_ids, torch.zeros_like(site.post))
    return LayerScores(scores=site.per_prompt(site.post * gradient), expected=site.clean - silent, n_points=1)


def ablation(site: Site) -> LayerScores:
    """Score by what switching the neuron off takes away; one forward pass per (row, neuron)."""
    without = _one_neuron_each(site, _all_but_one, site.engine.outputs)
    return LayerScores(scores=site.clean[:, None] - without, expected=site.nan(), n_points=_n_chosen(site))


def log_prob_gain(site: Site) -> LayerScores:
    """Score by what the neuron's value vector alone adds to the answer's log-probability read off after its layer.

    One forward pass up to the site's layer per (row, neuron). The engine's output must be the log-probability.
    """
    alone = _one_neuron_each(site, _only_one, site.engine.early_outputs)
    silent = site.engine.early_outputs(site.layer, site.prompt_ids, torch.zeros_like(site.post))
    return LayerScores(scores=alone - silent[:, None], expected=site.nan(), n_points=_n_chosen(site) + 1)


BASELINES: dict[str, Callable[[Site], LayerScores]] = {
    function.__name__: function for function in (activation, gradient_x_activation, ablation, log_prob_gain)
}


def _n_chosen(site: Site) -> int:
    return site.post.shape[-1] if site.indices is None else len(site.indices)


def _all_but_one(post: Float[Tensor, "step row d_mlp"], one: Float[Tensor, "step 1 d_mlp"]) -> Tensor:
    return post * (1 - one)


def _only_one(post: Float[Tensor, "step row d_mlp"], one: Float[Tensor, "step 1 d_mlp"]) -> Tensor:
    return post * one


def _one_neuron_each(
    site: Site, change: Callable[[Tensor, Tensor], Tensor], run: Callable[[int, Tensor, Tensor], Tensor]
) -> Float[Tensor, "batch d_mlp"]:
    """Run the site once for each chosen neuron with ``change(post, one-hot of the neuron)``; NaN for the others."""
    d_mlp = site.post.shape[-1]
    indices = torch.arange(d_mlp, device=site.post.device) if site.indices is None else site.indices
    outputs = site.nan(d_mlp)
    # A stretch of neurons small enough that the changed activations stay of the size of a pass.
    for some in indices.split(max(1, site.engine.rows_per_pass // len(site.post))):
        one = rearrange(torch.nn.functional.one_hot(some, d_mlp), "neuron d_mlp -> neuron 1 d_mlp").to(site.post)
        changed = change(repeat(site.post, "row d_mlp -> neuron row d_mlp", neuron=len(some)), one)
        prompt_ids = repeat(site.prompt_ids, "batch -> (neuron batch)", neuron=len(some))
        values = run(site.layer, prompt_ids, rearrange(changed, "neuron row d_mlp -> (neuron row) d_mlp"))
        outputs[:, some] = rearrange(values, "(neuron batch) -> batch neuron", neuron=len(some)).to(outputs)
    return outputs
