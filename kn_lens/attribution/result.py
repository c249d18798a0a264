"""The result of an attribution: scores of every neuron for every prompt, with their error bars."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._core.checks import check_share
from kn_lens._core.drawing import drawing
from kn_lens._core.wording import type_with_article
from kn_lens.attribution.options import METHODS
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.prompts import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Scores of every neuron for every prompt, with their error bars; ``plot()`` draws the highest.

    Attributes:
        scores: in the output's unit (probability by default); NaN where only chosen neurons or layers were computed.
            With ``keep``, a sparse tensor of the same shape.
        total: sum of the scores of each layer; NaN where a layer was not computed.
        clean: output of the unaltered model.
        expected: the sum of a layer's scores according to completeness: ``P(w) - P(0)``, for ``single_path`` the sum of
            ``P(w) - P(w with w_i = 0)`` over the chosen neurons; NaN for methods without such a sum.
        n_points: evaluations of the model that each pair rests on: gradients; for ``ablation`` and ``log_prob_gain``
            forward passes; for ``activation`` the clean pass, 1. It is 0 where nothing was computed.
        tolerance: the largest absolute gap that counts as converged.
        prompts: the prompts, in the order of ``scores``.
        method: as given to ``attribute``.
        output: name of the output.
        quadrature: the rule, with its number of points; ``none`` for methods without an integral.
        keep: the share of each prompt's largest score below which scores were dropped; None where all are kept.
    """

    scores: Float[Tensor, "batch n_layers d_mlp"]
    total: Float[Tensor, "batch n_layers"]
    clean: Float[Tensor, " batch"]
    expected: Float[Tensor, "batch n_layers"]
    n_points: Int[Tensor, "batch n_layers"]
    tolerance: Float[Tensor, " batch"]
    prompts: PromptBatch
    method: str
    output: str
    quadrature: str
    keep: float | None = None

    @property
    def completeness_gap(self) -> Float[Tensor, "batch n_layers"]:
        """The error bar of each (prompt, layer), ``sum_i score_i - expected``, signed, in the output's unit."""
        return self.total - self.expected

    @property
    def converged(self) -> Bool[Tensor, "batch n_layers"]:
        """Whether the gap is within the tolerance; False where the gap is not a number.

        A method without an expected sum integrates nothing and has no gap to close: True where its scores are numbers.
        True for layers that were not computed.
        """
        method = METHODS.get(self.method)
        if method is not None and method.is_complete:
            within = self.completeness_gap.abs() <= self.tolerance[:, None]
        else:
            within = self.total.isfinite()
        return within | (self.n_points == 0)

    @property
    def unconverged(self) -> list[tuple[int, int]]:
        """The (prompt, layer) pairs whose gap is above the tolerance, or whose gap or scores are no numbers."""
        return [(prompt, layer) for prompt, layer in (~self.converged).nonzero().tolist()]

    def thresholded(self, share: float = 0.1) -> "Attribution":
        """Return the attribution with only the scores of at least ``share`` times the prompt's largest, sparse.

        The released code stores these scores alone. A coarse set with a threshold of at least ``share`` needs no
        others. A prompt without a positive score keeps none. Of 36,864 scores of a prompt usually a few dozen are kept.

        Args:
            share: of the prompt's largest score, over all layers.

        Raises:
            ArgumentError: not a share, or the scores have been thresholded already.
        """
        check_share("share", share)
        if self.keep is not None:
            raise ArgumentError(f"The scores below {self.keep} of each prompt's largest have been dropped already.")
        numbers = torch.where(self.scores.isnan(), -torch.inf, self.scores)
        largest = numbers.amax((1, 2), keepdim=True)
        threshold = torch.where(largest > 0, share * largest, torch.inf)
        indices = (self.scores >= threshold).nonzero().T
        values = self.scores[tuple(indices)]
        scores = torch.sparse_coo_tensor(
            indices,
            values,
            self.scores.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        return replace(self, scores=scores, keep=share)

    def plot(self, fact: Fact | None = None, *, top: int = 20, seed: int = 0) -> Any:
        """Draw the neurons of highest mean score with 95% intervals, as a Plotly figure.

        The intervals are bootstrapped over prompts; with fewer than 8 prompts there are none. Scores that were dropped
        (``keep``) count as 0.

        Args:
            fact: whose prompts the mean is over; None takes all prompts.
            top: number of neurons.
            seed: of the bootstrap.

        Raises:
            ArgumentError: the fact has no prompts here, or no neuron has a score.
        """
        return drawing("attribution_figure")(self, fact, top=top, seed=seed)

    def _repr_html_(self) -> str:
        return drawing("attribution_html")(self)


def check_attribution(attr: object) -> None:
    """Raise unless an argument is an attribution.

    Raises:
        ArgumentError: another kind of argument, such as its scores.
    """
    if not isinstance(attr, Attribution):
        raise ArgumentError(
            f"Got {type_with_article(attr)}; expected an Attribution, as kn_lens.attribute(model, prompts) returns it."
        )
