"""Equation 3 of the paper as a plain sum over a plain model: what all faster code here must equal.

It runs TransformerLens' own ``run_with_cache`` and ``run_with_hooks`` and PyTorch's autograd, one prompt and one step
at a time, in full passes. It shares nothing with ``attribute`` but the prompts and the quadrature's points.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.attribution.quadrature import Quadrature, fixed_rule
from kn_lens.hosts import HookedModel, exclusive
from kn_lens.prompts import PromptBatch, check_prompts, host_for


@exclusive
@torch.enable_grad()
def reference_attribution(
    model: HookedModel,
    prompts: PromptBatch,
    layer: int,
    *,
    rule: str = "right",
    n_steps: int = 20,
) -> Float[Tensor, "batch d_mlp"]:
    """Attribute each prompt's answer to the neurons of one layer by Riemann sums (Dai et al. 2022, equation 3).

    With ``w`` the activation of the layer at the read position, or where ``prompts.at`` has put the prompts, and
    ``P(v)`` the probability of the answer with the activation replaced by ``v``,

        Attr_i = w_i * sum_k weight_k * dP(alpha_k w)/dw_i,   in the paper alpha_k = k/m and weight_k = 1/m, k = 1 ... m

    An answer of several tokens has a row of ``w`` for each. They move together, and the scores are summed over them.

    Args:
        model: a TransformerLens model in evaluation mode whose ``forward`` takes an ``attention_mask``, as all but the
            older ``HookedEncoder`` do.
        prompts: the prompts.
        layer: zero-based.
        rule: a fixed rule of ``kn_lens.attribution.quadrature``; ``right`` is the paper's, ``left`` that of its code.
        n_steps: number of points, ``m``.

    Returns:
        The scores, in probability. Cost: ``n_steps`` full forward and backward passes for each prompt, and one more
        forward pass. ``attribute`` gives the same scores of all layers in a fraction of the time.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, [kn.FactSet.world().find("Ireland", relation="P36")])[:2]
        >>> scores = kn.reference_attribution(model, prompts, layer=2)
        >>> fast = kn.attribute(model, prompts, layers=[2], preset="paper").scores[:, 2]
        >>> bool((scores - fast).abs().max() < 1e-6)
        True
    """
    check_prompts(prompts)
    points = fixed_rule(rule, n_steps)
    hook_post = host_for(model, prompts).hook_post(layer)
    scores = []
    for number in range(len(prompts)):
        prompt = prompts.select([number])
        scores.append(_prompt_scores(model, prompt, hook_post, points))
    return torch.stack(scores)


def _prompt_scores(
    model: HookedModel,
    prompt: PromptBatch,
    hook_post: str,
    points: Quadrature,
) -> Float[Tensor, " d_mlp"]:
    length = int(prompt.attention_mask.sum(-1).max())
    tokens = prompt.tokens[:, :length]
    options = {"attention_mask": prompt.attention_mask[:, :length]}
    if prompt.encoder_input is not None:
        options = {"attention_mask": prompt.encoder_input.attention_mask, "decoder_input_ids": tokens}
        tokens = prompt.encoder_input.tokens
    read_pos, post_pos = prompt.read_pos, prompt.post_pos
    rows = torch.arange(len(tokens), device=tokens.device)  # one for each token of the answer

    def probability(post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, ""]:
        def replace(
            activation: Float[Tensor, "row pos d_mlp"],
            hook: object,
        ) -> Float[Tensor, "row pos d_mlp"]:
            return activation.index_put((rows, post_pos), post)

        logits = model.run_with_hooks(
            tokens,
            fwd_hooks=[(hook_post, replace)],
            **options,
        )
        return logits[rows, read_pos].softmax(-1)[rows, prompt.target_ids].prod()

    _, cache = model.run_with_cache(tokens, names_filter=hook_post, **options)
    w = cache[hook_post][rows, post_pos].detach()
    mean_gradient = torch.zeros_like(w)
    for alpha, weight in zip(points.nodes, points.weights, strict=True):
        post = (alpha * w).requires_grad_()
        mean_gradient += weight * torch.autograd.grad(probability(post), post)[0]
    return (w * mean_gradient).sum(0)
