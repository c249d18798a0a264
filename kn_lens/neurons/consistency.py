"""Consistent facts: whether the prompts of a fact have the same neurons, whatever the wording.

Chen et al. (ICLR 2025, "Knowledge Localization: Mission Not Accomplished? Enter Query Localization!") find that the
neurons of many facts depend on the wording of the question. With C_1, ..., C_n the coarse sets of a fact's n prompts
(``coarse``), the consistency of the fact is the mean Jaccard index of their pairs,

    J = mean over i < j of |C_i and C_j| / |C_i or C_j|

from 0 (no two prompts share a neuron) to 1 (all have the same). It is compared with shuffled facts. In these the coarse
sets of the relation are dealt to its facts at random, those of each wording by themselves, so that a shuffled fact has
the wordings of the real one with subjects that were drawn for each. Such prompts share what the wordings and the
relation have in common. A fact is *consistent* if its J is above all but a share ``alpha`` of shuffled facts:

    p = (1 + number of shuffled facts with at least this J) / (1 + number of shuffled facts)     consistent: p <= alpha

Without any neurons of facts, a share alpha of the facts would be called consistent: the control of the share of
consistent facts. The paper instead sets a threshold on how much the sets of a fact's prompts overlap, which has no such
control. A prompt with an empty coarse set is left out, since no neuron speaks for its answer.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from kn_lens._core import defaults
from kn_lens._core.bootstrap import bootstrap_tables, fact_share
from kn_lens._core.checks import check_share
from kn_lens._core.display import ROWS_SHOWN, table_html
from kn_lens._core.wording import counted
from kn_lens.attribution import Attribution, check_attribution
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.neurons.refine import check_kept, coarse_cells, prompts_by_fact

if TYPE_CHECKING:
    import pandas as pd

N_SHUFFLED = 1000
"""Number of shuffled facts by default."""
ALPHA = 0.05
"""Share of shuffled facts above which a fact has to be."""
TIE = 1e-12
"""Difference of two mean Jaccard indices that are equal up to rounding."""
SHOWN = ("relation", "subject", "object", "n_prompts", "jaccard", "null_mean", "p", "consistent")
"""Columns of the table that notebooks show."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Consistency:
    """How consistent facts are, beside shuffled facts.

    Attributes:
        table: one row for each fact: ``relation``, ``subject``, ``object``, ``key``; ``n_prompts``, those with a coarse
            set; ``jaccard``, the mean Jaccard index of their sets; ``null_mean`` and ``null_high``, the mean and the
            quantile 1 - ``alpha`` of shuffled facts; ``p``; and ``consistent``. With fewer than two prompts, or without
            another fact that shares a wording, there are no shuffled facts: ``p`` is NaN.
        alpha: the level.
    """

    table: "pd.DataFrame"
    alpha: float

    def __repr__(self) -> str:
        return f"Consistency({self._summary()})"

    def _repr_html_(self) -> str:
        rows = self.table[list(SHOWN)].head(ROWS_SHOWN).to_numpy().tolist()
        cells = [[f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
        return table_html(self._summary(), SHOWN, cells, n_rows=len(self.table))

    def _summary(self) -> str:
        tested = int(np.isfinite(self.table["p"].to_numpy()).sum())
        consistent = int(self.table["consistent"].to_numpy().sum())
        return f"{counted(len(self.table), 'fact')}, {consistent:,} of {tested:,} tested are consistent"

    def summary(self, *, n_resamples: int = defaults.N_RESAMPLES, seed: int = 0) -> "pd.DataFrame":
        """Return the share of consistent facts and their mean Jaccard index, with intervals; ``consistency_table``."""
        return consistency_table(self.table, self.alpha, n_resamples=n_resamples, seed=seed)


def consistency_table(
    table: "pd.DataFrame",
    alpha: float,
    *,
    by_relation: bool = False,
    n_resamples: int,
    seed: int,
) -> "pd.DataFrame":
    """Return statistics of the table of ``Consistency`` over the facts with a p-value, then over relations.

    Args:
        table: ``relation, jaccard, null_mean, p, consistent``.
        alpha: the level of the tests.
        by_relation: rows for each relation, instead of their mean.
        n_resamples: number of bootstrap draws.
        seed: of the draws.

    Returns:
        A row for each (``relation`` and) ``measure`` with ``value, low, high, n, control``: ``consistent``, the share
        of consistent facts, with ``alpha`` as its control; ``jaccard``, with the mean of shuffled facts.
    """
    tested = table.loc[table["p"].notna()]
    tested = tested.assign(consistent=tested["consistent"].astype(float), of="facts")
    statistics = {name: fact_share(name) for name in ("consistent", "jaccard", "null_mean")}
    summary = bootstrap_tables(
        tested, ["of"], statistics, by_relation=by_relation, n_resamples=n_resamples, seed=seed
    ).drop(columns="of")
    is_shuffled = summary["measure"].to_numpy() == "null_mean"
    kept = summary.loc[~is_shuffled].reset_index(drop=True)
    control = np.full(len(kept), alpha)
    control[kept["measure"].to_numpy() == "jaccard"] = summary.loc[is_shuffled, "value"]
    return kept.assign(control=control)


def consistency(
    attr: Attribution,
    *,
    attr_threshold: float = defaults.ATTR_THRESHOLD,
    alpha: float = ALPHA,
    n_shuffled: int = N_SHUFFLED,
    seed: int = 0,
) -> Consistency:
    """Compare the coarse sets of each fact's prompts with one another, beside those of shuffled facts.

    See ``kn_lens.neurons.consistency`` for the definition. No model runs.

    Args:
        attr: scores of several facts of each relation, whole or thresholded. Shuffled facts are drawn from these facts,
            so that p cannot be small where a relation has few.
        attr_threshold: ``t`` of the coarse sets; at least ``attr.keep``.
        alpha: level of the test of each fact.
        n_shuffled: number of shuffled facts; p is at least 1 / (1 + this number).
        seed: of the shuffled facts; those of a relation do not depend on the other relations.

    Raises:
        ArgumentError: another kind of argument, a threshold outside [0, 1] or below ``attr.keep``, or no number of
            shuffled facts.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> facts = list(kn.FactSet.world().of("P36"))[:8]
        >>> found = kn.consistency(kn.attribute(model, kn.make_prompts(model, facts)))
        >>> found
        Consistency(8 facts, 8 of 8 tested are consistent)
    """
    import pandas as pd

    check_attribution(attr)
    check_share("attr_threshold", attr_threshold)
    check_kept("attr_threshold", attr_threshold, attr.keep)
    check_share("alpha", alpha)
    if isinstance(n_shuffled, bool) or not isinstance(n_shuffled, int) or n_shuffled < 1:
        raise ArgumentError(f"n_shuffled={n_shuffled!r}; expected a whole number from 1.")
    relations: dict[str, dict[Fact, _Prompts]] = {}
    for fact, prompts in _coarse_sets(attr, attr_threshold).items():
        relations.setdefault(fact.relation, {})[fact] = prompts
    rows: dict[Fact, dict[str, object]] = {}
    for by_fact in relations.values():
        shuffled = _Shuffled(by_fact, n_shuffled, seed)
        for fact, prompts in by_fact.items():
            value = mean_jaccard(prompts.sets)
            null = shuffled.of(prompts)
            p = np.nan
            if len(null):
                p = float((1 + (null >= value - TIE).sum()) / (1 + len(null)))
            rows[fact] = {
                "relation": fact.relation,
                "subject": fact.subject,
                "object": fact.object,
                "key": fact.key,
                "n_prompts": len(prompts.sets),
                "jaccard": value,
                "null_mean": float(null.mean()) if len(null) else np.nan,
                "null_high": float(np.quantile(null, 1 - alpha)) if len(null) else np.nan,
                "p": p,
                "consistent": p <= alpha,
            }
    ordered = [rows[fact] for fact in prompts_by_fact(attr.prompts)]
    return Consistency(table=pd.DataFrame(ordered), alpha=alpha)


def mean_jaccard(sets: Sequence[frozenset[int]]) -> float:
    """Return the mean Jaccard index of all pairs of some sets, none of them empty; NaN for fewer than two.

    >>> mean_jaccard([frozenset({1, 2}), frozenset({2, 3}), frozenset({2})]) == (1 / 3 + 1 / 2 + 1 / 2) / 3
    True
    """
    indices = []
    for a, b in combinations(sets, 2):
        n_shared = len(a & b)
        indices.append(n_shared / (len(a) + len(b) - n_shared))
    return sum(indices) / len(indices) if indices else np.nan


@dataclass(frozen=True)
class _Prompts:
    """The prompts of a fact that have a coarse set: their wordings and their sets."""

    templates: tuple[str, ...]
    sets: tuple[frozenset[int], ...]


def _coarse_sets(attr: Attribution, threshold: float) -> dict[Fact, _Prompts]:
    """Return the coarse sets of each fact's prompts, leaving empty ones out."""
    templates = attr.prompts.template
    by_fact = {}
    for fact, prompt_ids in prompts_by_fact(attr.prompts).items():
        position, cell = coarse_cells(attr.scores, prompt_ids.to(attr.scores.device), threshold)
        members: dict[int, list[int]] = {}
        for prompt, neuron in zip(position.tolist(), cell.tolist(), strict=True):
            members.setdefault(prompt, []).append(neuron)
        numbers = prompt_ids.tolist()
        by_fact[fact] = _Prompts(
            templates=tuple(templates[numbers[prompt]] for prompt in members),
            sets=tuple(map(frozenset, members.values())),
        )
    return by_fact


class _Shuffled:
    """Shuffled facts of a relation; facts with the same wordings have the same ones."""

    def __init__(self, by_fact: Mapping[Fact, _Prompts], n: int, seed: int) -> None:
        self._n = n
        self._seed = seed
        self._relation = next(iter(by_fact)).relation
        self._drawn: dict[tuple[str, ...], Float[np.ndarray, " shuffled"]] = {}
        self._sets: dict[str, list[frozenset[int]]] = {}
        for prompts in by_fact.values():
            for template, cells in zip(prompts.templates, prompts.sets, strict=True):
                self._sets.setdefault(template, []).append(cells)

    def of(self, prompts: _Prompts) -> Float[np.ndarray, " shuffled"]:
        """Return the mean Jaccard indices of facts with these wordings; none where there is nothing to draw from."""
        wordings = tuple(sorted(prompts.templates))
        if wordings not in self._drawn:
            self._drawn[wordings] = self._draw(wordings)
        return self._drawn[wordings]

    def _draw(self, wordings: tuple[str, ...]) -> Float[np.ndarray, " shuffled"]:
        n_of = {wording: wordings.count(wording) for wording in dict.fromkeys(wordings)}
        if len(wordings) < 2 or all(len(self._sets[wording]) == n for wording, n in n_of.items()):
            return np.empty(0)
        names = "\n".join([self._relation, *wordings])
        generator = np.random.default_rng([self._seed, zlib.crc32(names.encode())])
        values = []
        for _ in range(self._n):
            sets: list[frozenset[int]] = []
            for wording, n in n_of.items():
                candidates = self._sets[wording]
                drawn = generator.choice(len(candidates), n, replace=False)
                sets += [candidates[number] for number in drawn.tolist()]
            values.append(mean_jaccard(sets))
        return np.array(values)
