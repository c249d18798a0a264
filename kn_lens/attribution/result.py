"""The result of an attribution: scores of every neuron for every prompt, with their error bars."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._core.bootstrap import mean_intervals
from kn_lens._core.checks import check_share
from kn_lens._core.drawing import drawing
from kn_lens._core.layout import ONE_MLP_A_LAYER, NeuronLayout
from kn_lens._core.notation import NeuronKey
from kn_lens._core.wording import counted
from kn_lens.attribution.options import METHODS
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.prompts import PromptBatch, Selection

if TYPE_CHECKING:
    import pandas as pd

N_RESAMPLES = 1000
"""Bootstrap draws of prompts."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Scores of every neuron for every prompt, with their error bars.

    ``attr[fact]`` and ``attr[:3]`` are the attributions of some prompts, ``attr.top(5)`` the neurons of highest mean
    score, ``attr.plot()`` their figure. ``attr.to_frame()`` is a table of all scores, ``np.asarray(attr)`` an array.

    Attributes:
        scores: in the output's unit (probability by default); NaN where only chosen neurons or layers were computed.
            With ``keep``, a sparse tensor of the same shape. Where layers have experts, a sparse tensor of the scores
            of neurons that are on, and the last axis counts the rows of a layer through its experts: see ``layout``.
        total: sum of the scores of each layer; NaN where a layer was not computed.
        clean: output of the unaltered model.
        expected: the sum of a layer's scores according to completeness: ``P(w) - P(w0)``, for ``single_path`` the sum
            of ``P(w) - P(w with w_i = w0_i)`` over the chosen neurons; NaN for methods without such a sum.
        n_points: evaluations of the model that each pair rests on: gradients; for ``ablation`` and ``log_prob_gain``
            forward passes; for ``activation`` the clean pass, 1. It is 0 where nothing was computed.
        tolerance: the largest absolute gap that counts as converged.
        prompts: the prompts, in the order of ``scores``.
        method: as given to ``attribute``.
        output: name of the output.
        quadrature: the rule, with its number of points; ``none`` for methods without an integral.
        keep: the share of each prompt's largest score below which scores were dropped; None where all are kept.
        layout: which neurons the rows of a layer are, where layers have experts.
        start: where the paths start, ``zero`` in the paper; several names where scores are means over several starts;
            ``none`` for methods without a start.
        routing_term: what routing that responds would add to ``expected``, where layers have experts and ``expected``
            is ``P(w) - P(w0)`` with the routing of later layers held; NaN for other methods, and where a layer was not
            computed. None for models without experts.
        start_gaps: the completeness gap from each start, where there are several; ``completeness_gap`` is their mean.
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
    layout: NeuronLayout = ONE_MLP_A_LAYER
    start: str = "zero"
    routing_term: Float[Tensor, "batch n_layers"] | None = None
    start_gaps: Float[Tensor, "batch n_layers start"] | None = None

    @property
    def completeness_gap(self) -> Float[Tensor, "batch n_layers"]:
        """The error bar of each (prompt, layer), ``sum_i score_i - expected``, signed, in the output's unit."""
        return self.total - self.expected

    @property
    def converged(self) -> Bool[Tensor, "batch n_layers"]:
        """Whether the gap from every start is within the tolerance; False where the gap is not a number.

        A method without an expected sum integrates nothing and has no gap to close: True where its scores are numbers.
        True for layers that were not computed.
        """
        method = METHODS.get(self.method)
        if method is not None and method.is_complete:
            largest = self.completeness_gap.abs()
            if self.start_gaps is not None:
                largest = self.start_gaps.abs().amax(-1)
            within = largest <= self.tolerance[:, None]
        else:
            within = self.total.isfinite()
        return within | (self.n_points == 0)

    @property
    def unconverged(self) -> list[tuple[int, int]]:
        """The (prompt, layer) pairs whose gap is above the tolerance, or whose gap or scores are no numbers."""
        return [(prompt, layer) for prompt, layer in (~self.converged).nonzero().tolist()]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, prompts: Selection) -> "Attribution":
        """Return the attribution of some prompts: by number, slice, list of numbers, or fact.

        Raises:
            IndexError: no prompt of that number.
            ArgumentError: a fact without prompts, or something else.
        """
        selected = self.prompts[prompts]
        indices = torch.as_tensor(self.prompts.indices_of(prompts), device=self.scores.device, dtype=torch.long)
        scores = self.scores.index_select(0, indices)
        return replace(
            self,
            scores=scores.coalesce() if scores.is_sparse else scores,
            total=self.total[indices],
            clean=self.clean[indices],
            expected=self.expected[indices],
            n_points=self.n_points[indices],
            tolerance=self.tolerance[indices],
            prompts=selected,
            routing_term=None if self.routing_term is None else self.routing_term[indices],
            start_gaps=None if self.start_gaps is None else self.start_gaps[indices],
        )

    def to(self, device: str | torch.device) -> "Attribution":
        """Return the attribution on another device, with its prompts."""
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, PromptBatch)):
                moved[name] = value.to(device)
        return replace(self, **moved)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the scores as an array of prompts, layers and neurons; scores that were dropped are 0."""
        if copy is False and self.scores.is_sparse:
            raise ValueError("Sparse scores become an array only by a copy.")
        array = _as_array(self.scores.to_dense() if self.scores.is_sparse else self.scores)
        if dtype is not None:
            array = array.astype(dtype, copy=False)
        return array.copy() if copy else array

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row for each score that was computed and kept.

        Returns:
            ``prompt``, its number; ``relation``, ``subject`` and ``object`` of its fact; ``neuron``, its name;
            ``layer``, ``index`` and ``score``, in the order of prompts, layers and indices. The table of all scores is
            large, a row for each neuron and prompt; ``attr.thresholded(0.1)`` has a few dozen rows a prompt. Where
            layers have experts also ``expert``, before ``index``, and ``routing_term``, of the prompt and layer.

        Example:
            >>> import kn_lens as kn
            >>> model = kn.load_model("world-bert")
            >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="capital"))
            >>> frame = kn.attribute(model, prompts[:2], keep=0.5).to_frame()
            >>> list(frame)
            ['prompt', 'relation', 'subject', 'object', 'neuron', 'layer', 'index', 'score']
        """
        import pandas as pd

        if self.scores.is_sparse:
            scores = self.scores.coalesce()
            cells, values = scores.indices(), scores.values()
        else:
            cells = (~self.scores.isnan()).nonzero().T
            values = self.scores[tuple(cells)]
        prompt, layer, row = cells.cpu().numpy()
        n_rows = self.scores.shape[2]
        neurons, code = np.unique(layer * n_rows + row, return_inverse=True)
        named = self.layout.columns((neurons // n_rows).tolist(), (neurons % n_rows).tolist())
        fact_of_prompt = self.prompts.fact_index.cpu().numpy()
        columns: dict[str, Any] = {"prompt": prompt}
        for field in ("relation", "subject", "object"):
            texts = np.array([getattr(fact, field) for fact in self.prompts.facts], dtype=object)
            columns[field] = pd.Categorical(texts[fact_of_prompt[prompt]])
        columns["neuron"] = pd.Categorical.from_codes(code, categories=named.pop("neuron"))
        for name, of_neurons in named.items():
            dtype = object if name == "expert" else layer.dtype
            columns[name] = np.array(of_neurons, dtype=dtype)[code]
        columns["score"] = _as_array(values)
        if self.routing_term is not None:
            columns["routing_term"] = _as_array(self.routing_term)[prompt, layer]
        return pd.DataFrame(columns)

    def top(self, k: int = 20, fact: Fact | None = None, *, seed: int = 0) -> "pd.DataFrame":
        """Return the neurons of highest mean score with 95% intervals, which are bootstrapped over prompts.

        Scores that were dropped (``keep``) count as 0.

        Args:
            k: number of neurons.
            fact: whose prompts the mean is over; None takes all prompts.
            seed: of the bootstrap.

        Returns:
            ``neuron``, its name; ``layer``, ``index``; ``score``, the mean; ``low`` and ``high``, NaN for fewer than 8
            prompts.

        Raises:
            ArgumentError: the fact has no prompts here.

        Example:
            >>> import kn_lens as kn
            >>> model = kn.load_model("world-bert")
            >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="capital"))
            >>> attr = kn.attribute(model, prompts[:2])
            >>> kn.NeuronSet(attr.top(3)["neuron"]) <= kn.NeuronSet(attr.top(4)["neuron"])
            True
        """
        import pandas as pd

        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ArgumentError(f"k={k!r}; expected a number of neurons, such as 20.")
        attr = self if fact is None else self[fact]
        n_rows = self.scores.shape[-1]
        if self.layout.has_experts:
            cells, by_prompt = attr.stored_cells()
        else:
            by_prompt = np.asarray(attr).astype(float)
            by_prompt = by_prompt.reshape(len(by_prompt), -1)
            cells = np.arange(by_prompt.shape[1])
        mean = by_prompt.mean(0)
        n_shown = min(k, int((~np.isnan(mean)).sum()))
        best = np.argsort(-mean, kind="stable")[:n_shown]  # NaN is last
        layers, rows = np.divmod(cells[best], n_rows)
        intervals = mean_intervals(by_prompt[:, best], N_RESAMPLES, np.random.default_rng(seed))
        bounds = pd.DataFrame(intervals, columns=["low", "high"])
        named = self.layout.columns(layers.tolist(), rows.tolist())
        return pd.DataFrame({**named, "score": mean[best]}).join(bounds)

    def stored_cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells, ``layer * n_rows + row``, with a score under any prompt, and their scores by prompt."""
        scores = self.scores.coalesce()
        prompt, layer, row = scores.indices().cpu().numpy()
        cells, column = np.unique(layer * self.scores.shape[2] + row, return_inverse=True)
        by_prompt = np.zeros((len(self), len(cells)))
        by_prompt[prompt, column] = _as_array(scores.values())
        return cells, by_prompt

    def scores_of(self, neurons: Iterable[NeuronKey]) -> Float[Tensor, "batch neuron"]:
        """Return the scores of some neurons; 0 where one was dropped or is off, NaN where it was not computed.

        Args:
            neurons: of the attributed model, such as a ``NeuronSet``.
        """
        pairs = [(key[0], self.layout.row(key)) for key in neurons]
        layer, row = torch.tensor(pairs, device=self.scores.device, dtype=torch.long).reshape(-1, 2).T
        if not self.scores.is_sparse:
            return self.scores[:, layer, row]
        n_rows = self.scores.shape[2]
        scores = self.scores.coalesce()
        prompt, stored_layer, stored_row = scores.indices()
        wanted, position = (layer * n_rows + row).sort()
        stored = stored_layer * n_rows + stored_row
        place = torch.searchsorted(wanted, stored).clamp(max=max(len(wanted) - 1, 0))
        result = scores.values().new_zeros(len(self), len(pairs))
        if len(wanted):
            is_wanted = wanted[place] == stored
            result[prompt[is_wanted], position[place[is_wanted]]] = scores.values()[is_wanted]
        return result

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
        if self.scores.is_sparse:
            return self._thresholded_sparse(share)
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

    def _thresholded_sparse(self, share: float) -> "Attribution":
        scores = self.scores.coalesce()
        prompt, values = scores.indices()[0], scores.values()
        largest = values.new_zeros(len(self)).scatter_reduce(0, prompt, values, "amax")
        threshold = torch.where(largest > 0, share * largest, torch.inf)
        is_kept = values >= threshold[prompt]
        kept = torch.sparse_coo_tensor(
            scores.indices()[:, is_kept],
            values[is_kept],
            self.scores.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        return replace(self, scores=kept, keep=share)

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

    def __repr__(self) -> str:
        n_prompts, n_layers, d_mlp = self.scores.shape
        return (
            f"Attribution({counted(n_prompts, 'prompt')}, {counted(n_layers, 'layer')} of {d_mlp:,} neurons: "
            f"{self.method}, {self.output}, {self.quadrature}{self._start_text()}{self._gap_text()})"
        )

    def _start_text(self) -> str:
        return "" if self.start in ("zero", "none") else f", start: {self.start}"

    def _gap_text(self) -> str:
        gap = self.completeness_gap.abs()
        if gap.isnan().all():
            return ""
        text = f"; completeness gap at most {float(gap.nan_to_num(0).max()):.2g}"
        if self.routing_term is not None and not self.routing_term.isnan().all():
            text += f", routing term at most {float(self.routing_term.abs().nan_to_num(0).max()):.2g}"
        return text

    def _repr_html_(self) -> str:
        return drawing("attribution_html")(self)


def _as_array(values: Float[Tensor, "..."]) -> np.ndarray:
    """Return a tensor as an array, with half precision, which NumPy has only in part, as single precision."""
    values = values.detach().cpu()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return values.numpy()
