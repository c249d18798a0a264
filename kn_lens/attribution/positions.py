"""Attribution at several positions of each prompt: one attribution for each pair of a prompt and a position.

At position p of the prompt, let ``w`` be the activation of one layer. It moves alone, and the answer is read where it
always is. So every pair has scores of its own, and completeness holds for every (position, layer):

    sum_i Attr_i(p) = P(w) - P(w at p set to 0)

The scores of different positions do not add up to anything: what one position writes, others read.

A pair is a prompt that is put at its position (``PromptBatch.at``), so that all methods work on pairs as on prompts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens._core.drawing import drawing
from kn_lens._core.layout import NeuronLayout
from kn_lens._core.wording import counted
from kn_lens.attribution.result import Attribution
from kn_lens.attribution.starts import MeanStart, check_counterfactuals
from kn_lens.errors import ArgumentError
from kn_lens.hosts import Kind
from kn_lens.prompts import (
    ROLES,
    PositionName,
    PositionsName,
    PromptBatch,
    Role,
    Selection,
    one_position,
    positions_of,
    roles_of,
)

if TYPE_CHECKING:
    import pandas as pd

Positions = PositionsName | Int[Tensor, "batch position"]
"""Positions by name, or those of each prompt, with -1 where a prompt has fewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionPairs:
    """The pairs of prompts and positions, in the order of the prompts.

    Attributes:
        prompts: the prompts.
        positions: of each prompt, ascending; -1 where it has fewer.
        pair_index: the number of each pair, likewise.
        expanded: the prompt of each pair, put at its position.
        named: the positions as they were given.
        kind: of the model.
    """

    prompts: PromptBatch
    positions: Int[Tensor, "batch position"]
    pair_index: Int[Tensor, "batch position"]
    expanded: PromptBatch
    named: Positions
    kind: Kind

    @classmethod
    def of(cls, prompts: PromptBatch, positions: Positions, kind: Kind) -> "PositionPairs":
        """Return the pairs at some positions.

        Args:
            prompts: the prompts.
            positions: by name, or as a tensor.
            kind: of the model.

        Raises:
            ArgumentError: as ``kn_lens.prompts.positions_of``.
        """
        prompts = prompts.at("read")
        found = positions_of(prompts, positions, kind)
        exists = found >= 0
        owner, _ = exists.nonzero().unbind(-1)
        expanded = prompts.select(owner)
        moved_pos = found[exists][expanded.prompt_index]
        if not isinstance(positions, Tensor):
            # By name, the read position is that of each row of an answer.
            first_read = prompts.answer_pos[_first_rows(prompts)][owner][expanded.prompt_index]
            moved_pos = torch.where(moved_pos == first_read, expanded.answer_pos, moved_pos)
        return cls(
            prompts=prompts,
            positions=found,
            pair_index=numbered(exists),
            expanded=expanded.at(moved_pos),
            named=positions,
            kind=kind,
        )

    def expand(self, others: PromptBatch) -> PromptBatch:
        """Return other prompts, one for each of these and of its length, put at the position of each pair."""
        owner, _ = (self.positions >= 0).nonzero().unbind(-1)
        return others.select(owner).at(self.expanded.post_pos)

    def batches(self) -> Iterator[tuple[Int[Tensor, " pair"], PromptBatch]]:
        """Yield the pairs that are read where they are moved, and then the others, by position; and their prompts.

        So the former are computed as without positions, to the bit.
        """
        expanded = self.expanded
        is_elsewhere = _any_row(expanded.post_pos != expanded.answer_pos, expanded)
        at_read = (~is_elsewhere).nonzero().squeeze(1)
        if len(at_read):
            yield at_read, expanded.select(at_read).at("read")
        elsewhere = is_elsewhere.nonzero().squeeze(1)
        if len(elsewhere):
            position = expanded.post_pos[_first_rows(expanded)][elsewhere]
            elsewhere = elsewhere[position.argsort(stable=True)]
            yield elsewhere, expanded.select(elsewhere)


def numbered(exists: Bool[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Return the number of each pair that exists, in the order of prompts and positions; -1 where there is none."""
    return torch.where(exists, exists.flatten().cumsum(0).view_as(exists) - 1, -1)


def expanded_starts(start: Any, pairs: PositionPairs) -> Any:
    """Return the argument ``start`` of ``attribute`` for pairs of prompts and positions.

    Prompts that are part of it are put at the same positions, by name or, of counterfactual ones, by number.

    Raises:
        ArgumentError: counterfactual prompts of other lengths than the prompts, or the mean over prompts at positions
            without a name.
    """
    if isinstance(start, (list, tuple)):
        return [expanded_starts(one, pairs) for one in start]
    if isinstance(start, PromptBatch):
        check_counterfactuals(start, pairs.prompts)
        lengths = [start.counted_length, pairs.prompts.counted_length]
        differs = lengths[0] != lengths[1]
        if bool(differs.any()):
            number = int(differs.long().argmax())
            raise ArgumentError(
                f"The counterfactual prompt {start.text[number]!r} has {int(lengths[0][number])} tokens, and the "
                f"prompt {pairs.prompts.text[number]!r} has {int(lengths[1][number])}: their positions do "
                "not correspond. Take subjects of as many tokens, or one position: prompts.at('subject_last')."
            )
        return pairs.expand(start)
    if isinstance(start, MeanStart) and start.prompts is not None:
        if isinstance(pairs.named, Tensor):
            raise ArgumentError(
                "The positions of the prompts of kn.MeanStart are not known; expected positions by name, such as "
                "'subject', or the mean over the attributed prompts: start='mean'."
            )
        return MeanStart(PositionPairs.of(start.prompts, pairs.named, pairs.kind).expanded)
    return start


def _first_rows(prompts: PromptBatch) -> Int[Tensor, " batch"]:
    n_rows = prompts.rows_per_prompt
    return n_rows.cumsum(0) - n_rows


def _any_row(is_true: Bool[Tensor, " row"], prompts: PromptBatch) -> Bool[Tensor, " batch"]:
    """Return whether something is true of any row of each prompt."""
    counts = torch.zeros(len(prompts), dtype=torch.long, device=is_true.device)
    return counts.index_add(0, prompts.prompt_index, is_true.long()) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionAttribution:
    """Scores of every neuron at several positions of every prompt, with their error bars.

    ``attr.at("subject_last")`` is the ``Attribution`` at one position, for ``refine`` and all else that takes one;
    ``attr[fact]`` that of some prompts, ``attr.by_role()`` a table of layers and roles, ``attr.plot_positions()`` its
    figure, ``attr.to_frame()`` a table of all scores.

    Attributes:
        pairs: the attribution of each pair of a prompt and a position, in the order of the prompts.
        prompts: the prompts.
        positions: counted in tokens, ascending; -1 where a prompt has fewer. Of an answer of several tokens the read
            position is each row's own, and here that of the first.
        pair_index: the number of each pair in ``pairs``; -1 where there is none.
    """

    pairs: Attribution
    prompts: PromptBatch
    positions: Int[Tensor, "batch position"]
    pair_index: Int[Tensor, "batch position"]

    @property
    def scores(self) -> Float[Tensor, "batch position n_layers d_mlp"]:
        """In the output's unit; NaN where a prompt has no such position, or where a score was not computed.

        Sparse where those of ``Attribution`` are: scores that were dropped (``keep``), of neurons that are off, and of
        positions that a prompt does not have are not stored. A copy, unless all prompts have as many positions.
        """
        scores = self.pairs.scores
        shape = (*self.positions.shape, *scores.shape[1:])
        if not scores.is_sparse:
            return self._folded(scores, float("nan"))
        scores = scores.coalesce()
        pair, layer, row = scores.indices()
        prompt, column = self._places
        indices = torch.stack([prompt[pair], column[pair], layer, row])
        return torch.sparse_coo_tensor(
            indices, scores.values(), shape, is_coalesced=True, check_invariants=False
        )  # pairs are in the order of prompts and positions

    @property
    def total(self) -> Float[Tensor, "batch position n_layers"]:
        """Sum of the scores of each position and layer."""
        return self._folded(self.pairs.total, float("nan"))

    @property
    def clean(self) -> Float[Tensor, " batch"]:
        """Output of the unaltered model."""
        return self.pairs.clean[self.pair_index[:, 0]]

    @property
    def expected(self) -> Float[Tensor, "batch position n_layers"]:
        """The sum of the scores of each position and layer according to completeness; see ``Attribution``."""
        return self._folded(self.pairs.expected, float("nan"))

    @property
    def n_points(self) -> Int[Tensor, "batch position n_layers"]:
        """Evaluations of the model that each rests on; 0 where nothing was computed."""
        return self._folded(self.pairs.n_points, 0)

    @property
    def tolerance(self) -> Float[Tensor, " batch"]:
        """The largest absolute gap that counts as converged."""
        return self.pairs.tolerance[self.pair_index[:, 0]]

    @property
    def completeness_gap(self) -> Float[Tensor, "batch position n_layers"]:
        """The error bar of each (prompt, position, layer); see ``Attribution``."""
        return self._folded(self.pairs.completeness_gap, float("nan"))

    @property
    def converged(self) -> Bool[Tensor, "batch position n_layers"]:
        """Whether the gap is within the tolerance; True where nothing was computed."""
        return self._folded(self.pairs.converged, True)

    @property
    def unconverged(self) -> list[tuple[int, int, int]]:
        """The (prompt, column of ``positions``, layer) triples whose gap is above the tolerance, or no number."""
        triples = (~self.converged).nonzero().tolist()
        return [(prompt, column, layer) for prompt, column, layer in triples]

    @property
    def routing_term(self) -> Float[Tensor, "batch position n_layers"] | None:
        """What routing that responds would add to ``expected``; None for models without experts."""
        routing_term = self.pairs.routing_term
        return None if routing_term is None else self._folded(routing_term, float("nan"))

    @property
    def start(self) -> str:
        """Where paths start; see ``Attribution``."""
        return self.pairs.start

    @property
    def method(self) -> str:
        """As given to ``attribute``."""
        return self.pairs.method

    @property
    def output(self) -> str:
        """Name of the output."""
        return self.pairs.output

    @property
    def quadrature(self) -> str:
        """The rule, with its number of points; ``none`` for methods without an integral."""
        return self.pairs.quadrature

    @property
    def keep(self) -> float | None:
        """The share of the largest score of each prompt and position below which scores were dropped."""
        return self.pairs.keep

    @property
    def layout(self) -> NeuronLayout:
        """Which neurons the rows of a layer are, where layers have experts."""
        return self.pairs.layout

    @property
    def roles(self) -> list[list[Role | None]]:
        """The role of each position of each prompt (``kn_lens.prompts.ROLES``); None where there is none."""
        return roles_of(self.prompts, self.positions)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, prompts: Selection) -> "PositionAttribution":
        """Return the attribution of some prompts: by number, slice, list of numbers, or fact.

        Raises:
            IndexError: no prompt of that number.
            ArgumentError: a fact without prompts, or something else.
        """
        selected = self.prompts[prompts]
        chosen = torch.as_tensor(self.prompts.indices_of(prompts), device=self.positions.device, dtype=torch.long)
        pair_index = self.pair_index[chosen]
        return PositionAttribution(
            pairs=self.pairs[pair_index[pair_index >= 0].tolist()],
            prompts=selected,
            positions=self.positions[chosen],
            pair_index=numbered(pair_index >= 0),
        )

    def at(self, position: PositionName | int) -> Attribution:
        """Return the attribution at one position of each prompt.

        Args:
            position: ``read``, ``subject_last``, or a column of ``positions``.

        Returns:
            An ``Attribution`` whose prompts are put there (``prompts.at``), so that interventions on it act there.

        Raises:
            ArgumentError: another position, or one that was not attributed in every prompt.

        Example:
            >>> import kn_lens as kn
            >>> model = kn.load_model("world-bert")
            >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
            >>> attr = kn.attribute(model, prompts, positions="all")
            >>> len(kn.refine(attr.at("subject_last"))), len(kn.refine(attr.at("read")))
            (1, 1)
        """
        n_columns = self.positions.shape[1]
        if isinstance(position, str):
            numbers = self._pairs_at(one_position(self.prompts, position))
        elif isinstance(position, int) and not isinstance(position, bool) and -n_columns <= position < n_columns:
            numbers = self.pair_index[:, position]
        else:
            raise ArgumentError(
                f"Got the position {position!r}; expected 'read', 'subject_last', or the number of a column of "
                f"positions, 0 to {n_columns - 1}."
            )
        lacking = (numbers < 0).nonzero().flatten().tolist()
        if lacking:
            name = repr(position) if isinstance(position, str) else f"column {position} of positions"
            others = f", and {counted(len(lacking) - 1, 'other prompt')} likewise" if len(lacking) > 1 else ""
            raise ArgumentError(
                f"The prompt {self.prompts.text[lacking[0]]!r} was not attributed at {name}{others}; "
                "attribute with positions='all', or choose prompts that have it: attr[numbers]."
            )
        attr = self.pairs[numbers.tolist()]
        moved_pos = attr.prompts.post_pos
        is_read = bool((moved_pos == attr.prompts.answer_pos).all())
        return replace(attr, prompts=self.prompts.at("read" if is_read else moved_pos))

    def to(self, device: str | torch.device) -> "PositionAttribution":
        """Return the attribution on another device, with its prompts."""
        return PositionAttribution(
            pairs=self.pairs.to(device),
            prompts=self.prompts.to(device),
            positions=self.positions.to(device),
            pair_index=self.pair_index.to(device),
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the scores as an array of prompts, positions, layers and neurons; scores that were dropped are 0."""
        flat = self.pairs.__array__(dtype)
        scores = np.full((*self.positions.shape, *flat.shape[1:]), np.nan, dtype=flat.dtype)
        prompt, column = self._places.cpu().numpy()
        scores[prompt, column] = flat
        return scores

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row for each score that was computed and kept.

        Returns:
            The columns of ``Attribution.to_frame``, and after ``object`` also ``position``; ``role``, of the token
            there; and ``token``, its id.

        Example:
            >>> import kn_lens as kn
            >>> model = kn.load_model("world-bert")
            >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="capital"))
            >>> frame = kn.attribute(model, prompts[:2], positions="subject", keep=0.5).to_frame()
            >>> list(frame)[:8]
            ['prompt', 'relation', 'subject', 'object', 'position', 'role', 'token', 'neuron']
        """
        import pandas as pd

        frame = self.pairs.to_frame()
        prompt, column = self._places.cpu().numpy()
        pair = frame["prompt"].to_numpy()
        first = _first_rows(self.prompts)
        tokens = self.prompts.counted_tokens[first].gather(1, self.positions.clamp(min=0)).cpu().numpy()
        roles = np.array(self.roles, dtype=object)
        at = (prompt[pair], column[pair])
        frame["prompt"] = at[0]
        new = {
            "position": self.positions.cpu().numpy()[at],
            "role": pd.Categorical(roles[at], categories=ROLES, ordered=True),
            "token": tokens[at],
        }
        for name, values in reversed(new.items()):
            frame.insert(list(frame).index("object") + 1, name, values)
        return frame

    def by_role(self) -> "pd.DataFrame":
        """Return what each layer carries at the tokens of each role, averaged over prompts.

        Where a prompt has several tokens of a role, each of which moves alone, they are averaged first.

        Returns:
            ``role``, in the order of a prompt; ``layer``; ``n_prompts``, those that have such a token; ``positive``,
            the sum of the positive scores; ``effect``, ``P(w) - P(0)``, what the answer loses where the layer is silent
            at the token (NaN for methods without such a sum).

        Example:
            >>> import kn_lens as kn
            >>> model = kn.load_model("world-bert")
            >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="capital"))
            >>> table = kn.attribute(model, prompts, positions="all").by_role()
            >>> list(table), list(table["role"].unique())
            (['role', 'layer', 'n_prompts', 'positive', 'effect'], ['before', 'subject_last', 'after', 'read'])
        """
        import pandas as pd

        prompt, column = self._places.cpu().numpy()
        roles = np.array(self.roles, dtype=object)[prompt, column]
        positive = self._positive().double().cpu().numpy()
        effect = self.pairs.expected.double().cpu().numpy()
        rows: list[dict[str, Any]] = []
        for role in ROLES:
            has_role = roles == role
            if not has_role.any():
                continue
            prompts, owner, n_tokens = np.unique(prompt[has_role], return_inverse=True, return_counts=True)
            weights = 1 / n_tokens[owner] / len(prompts)
            means = {"positive": weights @ positive[has_role], "effect": weights @ effect[has_role]}
            for layer in range(positive.shape[1]):
                values = {name: float(mean[layer]) for name, mean in means.items()}
                rows.append({"role": role, "layer": layer, "n_prompts": len(prompts), **values})
        return pd.DataFrame(rows)

    def plot_positions(self, *, value: str = "effect") -> Any:
        """Draw ``by_role`` as a heat map of layers and roles, as a Plotly figure.

        Args:
            value: ``effect``, or ``positive``.

        Raises:
            ArgumentError: another value.
        """
        return drawing("position_figure")(self, value=value)

    def __repr__(self) -> str:
        n_layers, d_mlp = self.pairs.scores.shape[1:]
        n_positions = counted(self.positions.shape[1], "position")
        return (
            f"PositionAttribution({counted(len(self), 'prompt')}, up to {n_positions}, "
            f"{counted(n_layers, 'layer')} of {d_mlp:,} neurons: "
            f"{self.method}, {self.output}, {self.quadrature}{self.pairs._gap_text()})"
        )

    @property
    def _places(self) -> Int[Tensor, "2 pair"]:
        """The prompt and the column of each pair."""
        return (self.pair_index >= 0).nonzero().T

    def _folded(
        self,
        values: Shaped[Tensor, "pair ..."],
        otherwise: float | bool,
    ) -> Shaped[Tensor, "batch position ..."]:
        """Return values of pairs by prompt and position, with another value where there is no pair."""
        if bool((self.pair_index >= 0).all()):
            return values.unflatten(0, self.pair_index.shape)
        folded = values.new_full((*self.pair_index.shape, *values.shape[1:]), otherwise)
        folded[self.pair_index >= 0] = values
        return folded

    def _pairs_at(self, position: Int[Tensor, " row"]) -> Int[Tensor, " batch"]:
        """Return the pair of each prompt that is moved at a position of each of its rows; -1 where there is none."""
        pair_prompts = self.pairs.prompts
        prompt, _ = self._places
        rows, _ = self.prompts.rows_and_owners(prompt)
        differs = _any_row(pair_prompts.post_pos != position[rows], pair_prompts)
        same = (~differs).nonzero().squeeze(1)
        numbers = torch.full((len(self.prompts),), -1, device=prompt.device)
        numbers[prompt[same]] = same
        return numbers

    def _positive(self) -> Float[Tensor, "pair n_layers"]:
        """Return the sum of the positive scores of each pair and layer."""
        scores = self.pairs.scores
        if not scores.is_sparse:
            return scores.clamp(min=0).nansum(-1)
        scores = scores.coalesce()
        pair, layer, _ = scores.indices()
        sums = scores.values().new_zeros(self.pairs.total.shape)
        return sums.index_put((pair, layer), scores.values().clamp(min=0), accumulate=True)


def position_attribution(pairs: PositionPairs, attr: Attribution) -> PositionAttribution:
    """Return the attribution of pairs, in their order, with an axis for positions."""
    return PositionAttribution(
        pairs=attr, prompts=pairs.prompts, positions=pairs.positions, pair_index=pairs.pair_index
    )


def check_attribution(attr: object) -> None:
    """Raise unless an argument is an attribution at one position of each prompt.

    Raises:
        ArgumentError: an attribution at several, or another kind of argument, such as scores.
    """
    if isinstance(attr, PositionAttribution):
        raise ArgumentError(
            "Got an attribution with an axis for positions; expected one at one position of each prompt: "
            "attr.at('subject_last'), attr.at('read'), or attr.at(column)."
        )
    check_kind(attr, Attribution, "an Attribution: kn_lens.attribute(model, prompts)")
