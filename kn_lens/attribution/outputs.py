"""Outputs: the quantity that an attribution explains, one number per prompt from the logits at the read position.

An answer of k tokens is read in k rows, each teacher-forced on the gold tokens before it, so by the chain rule

    prob       P(answer)      = exp( sum_j log p_j(t_j) )      probability (the paper's choice)
    log_prob   log P(answer)  = sum_j log p_j(t_j)             nats
    logit      sum_j z_j[t_j]                                  logits
    logit_diff sum_j ( z_j[t_j] - z_j[c_j] )                   logits, c the contrast answer

with ``z_j`` the logits and ``p_j = softmax(z_j)`` of row j. For a masked model the product is the left-to-right
pseudo-likelihood: the tokens after j are masked. The softmax is taken in float32 at least.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._core.precision import at_least_float32
from kn_lens.errors import ArgumentError, did_you_mean

RowTerm = Callable[
    [Float[Tensor, "row d_vocab"], Int[Tensor, " row"], Int[Tensor, " row"] | None],
    Float[Tensor, " row"],
]


@dataclass(frozen=True)
class Output:
    """A scalar of each prompt: ``link(sum over the answer's rows of term)``.

    Attributes:
        name: label of results.
        term: one number per row, from its logits, its target token and, if needed, its contrast token.
        link: applied to the sum; differentiable.
        needs_contrast: whether ``term`` reads the contrast tokens.

    >>> def above_mean(logits, target_ids, contrast_ids):
    ...     return target_logits(logits, target_ids) - logits.mean(-1)
    >>> output = Output("logit_above_mean", above_mean, link=lambda total: total)
    >>> first = torch.tensor([0])
    >>> output(torch.tensor([[2.0, 0.0, 1.0]]), first, None, prompt_index=first, n_prompts=1)
    tensor([1.])
    """

    name: str
    term: RowTerm
    link: Callable[[Float[Tensor, " prompt"]], Float[Tensor, " prompt"]]
    needs_contrast: bool = False

    def __call__(
        self,
        logits: Float[Tensor, "row d_vocab"],
        target_ids: Int[Tensor, " row"],
        contrast_ids: Int[Tensor, " row"] | None,
        prompt_index: Int[Tensor, " row"],
        n_prompts: int,
    ) -> Float[Tensor, " prompt"]:
        """Return the output of each prompt; ``prompt_index`` is the prompt of each row, of ``n_prompts``."""
        terms = self.term(at_least_float32(logits), target_ids, contrast_ids)
        return self.link(terms.new_zeros(n_prompts).index_add(0, prompt_index, terms))


def target_log_probs(
    logits: Float[Tensor, "row d_vocab"],
    target_ids: Int[Tensor, " row"],
    contrast_ids: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, " row"]:
    """Return log p(target) of each row, in nats."""
    return -nn.functional.cross_entropy(logits, target_ids, reduction="none")


def target_logits(
    logits: Float[Tensor, "row d_vocab"],
    target_ids: Int[Tensor, " row"],
    contrast_ids: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, " row"]:
    """Return the logit of each row's target."""
    return logits.gather(-1, target_ids[:, None]).squeeze(-1)


def _logit_differences(
    logits: Float[Tensor, "row d_vocab"],
    target_ids: Int[Tensor, " row"],
    contrast_ids: Int[Tensor, " row"] | None,
) -> Float[Tensor, " row"]:
    assert contrast_ids is not None  # checked by `resolve_output`
    return target_logits(logits, target_ids) - target_logits(logits, contrast_ids)


def _identity(x: Float[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
    return x


OUTPUTS = {
    output.name: output
    for output in (
        Output("prob", target_log_probs, torch.exp),
        Output("log_prob", target_log_probs, _identity),
        Output("logit", target_logits, _identity),
        Output("logit_diff", _logit_differences, _identity, needs_contrast=True),
    )
}


def resolve_output(output: str | Output, *, has_contrast: bool) -> Output:
    """Return the named output, or the given one, if the prompts have the tokens that it reads.

    Raises:
        ArgumentError: unknown name, or a contrast is needed and the prompts have none.
    """
    if isinstance(output, str):
        if output not in OUTPUTS:
            hint = did_you_mean(output, OUTPUTS)
            raise ArgumentError(f"Unknown output {output!r}; expected one of {', '.join(OUTPUTS)}.{hint}")
        output = OUTPUTS[output]
    if output.needs_contrast and not has_contrast:
        raise ArgumentError(
            f"output={output.name!r} compares the answer with another one, "
            "and these prompts name none: make them with make_prompts(..., contrast='Paris') "
            "or from_tokens(..., contrast_ids=...)."
        )
    return output
