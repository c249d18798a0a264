"""What is compared: each statistic of each run on the same facts, drawn alike, so that differences are paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from kn_lens import _paired as paired
from kn_lens._compared_runs import ComparedRun
from kn_lens._draws import SHARE, interval
from kn_lens.errors import DataError
from kn_lens.experiments.overlap_tables import STATISTICS as OF_SETS
from kn_lens.experiments.overlap_tables import exact_and_drawn

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = (
    "accuracy", "nll", "known", *OF_SETS, "mean_depth",
    "suppress_own", "suppress_other", "amplify_own", "amplify_other",
)  # fmt: skip
"""In the order of tables."""
POOLED = ("known", "neurons_per_fact")
"""Ratios over all facts together; of other statistics the mean over relations is taken."""


SHARES = ("accuracy", "known", "mean_depth")
"""Statistics between 0 and 1."""
SIZES = ("nll", *OF_SETS)
"""Statistics of 0 or more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A statistic of a run, or the difference of two.

    Attributes:
        drawn: its value; in the first place of the facts as they are, then of facts drawn anew.
        facts: what each fact adds to it: their mean is the value. None where it is about pairs of facts.
        relations: what each relation adds to it, likewise. None where it is about pairs of relations.
        sizes: how many facts each relation has.
        within: where it lies, whatever the facts are.
        n: facts, or pairs of facts.
    """

    drawn: np.ndarray
    sizes: np.ndarray
    within: tuple[float, float] = (-np.inf, np.inf)
    facts: np.ndarray | None = None
    relations: np.ndarray | None = None
    n: int

    @property
    def value(self) -> float:
        """The value of the facts as they are."""
        return float(self.drawn[0])

    def row(self) -> dict[str, float]:
        """Return ``value``, ``low``, ``high`` and ``n``."""
        return {"value": self.value, **interval(self.drawn, self.sizes, within=self.within), "n": self.n}

    def minus(self, other: "Cell") -> "Cell":
        """Return the difference of two statistics of the same facts."""

        def less(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
            return None if a is None or b is None else a - b

        facts, relations = less(self.facts, other.facts), less(self.relations, other.relations)
        drawn = self.drawn - other.drawn
        return Cell(drawn=drawn, sizes=self.sizes, facts=facts, relations=relations, n=self.n)


Cells = dict[tuple[str, str, str], Cell]
"""By run, statistic and kind of neurons."""


def control_of(cells: Cells, run: str, statistic: str, *, even: float) -> float:
    """Return the control of a statistic; NaN without one.

    Args:
        cells: where it is.
        run: of which.
        statistic: of which.
        even: the ``mean_depth`` of neurons spread evenly over the layers; random ones lie where those found do.
    """
    if statistic == "mean_depth":
        return even
    cell = cells.get((run, statistic, "majority" if statistic in ("accuracy", "known") else "random"))
    # There are as many random neurons as found ones.
    return np.nan if cell is None or statistic == "neurons_per_fact" else cell.value


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimator:
    """Runs, and how their statistics are drawn and tested.

    Attributes:
        runs: all that are compared.
        n_resamples: bootstrap samples.
        n_permutations: of tests.
        seed: of both.
    """

    runs: tuple[ComparedRun, ...]
    n_resamples: int
    n_permutations: int
    seed: int

    @cached_property
    def equal(self) -> "pd.Index":
        """Keys of the facts that all runs have, with the same templates.

        Raises:
            DataError: there is none.
        """
        first = self.runs[0].facts
        equal, same_key = first.index, first.index
        for run in self.runs[1:]:
            same_key = same_key.intersection(run.facts.index)
            equal = equal.intersection(run.facts.index)
            equal = equal[run.facts.loc[equal, "digest"].to_numpy() == first.loc[equal, "digest"].to_numpy()]
        if not len(equal):
            why = f"{len(same_key):,} are in all, but with different templates" if len(same_key) else "none is in all"
            raise DataError(
                f"{', '.join(run.name for run in self.runs)} have no fact in common ({why}); expected runs over the "
                "same facts, or over some of the same."
            )
        return equal

    def asked_of(self, runs: Sequence[ComparedRun]) -> list[str]:
        """Return the equal facts that some models are all asked for, by relation and key."""
        return self._ordered([run.asked for run in runs])

    def known_to(self, runs: Sequence[ComparedRun]) -> list[str]:
        """Return the equal facts that some models all know, by relation and key."""
        return self._ordered([run.known for run in runs])

    def _ordered(self, chosen: "Sequence[pd.Index]") -> list[str]:
        keys = self.equal
        for one in chosen:
            keys = keys.intersection(one)
        relations = self.runs[0].facts["relation"]
        return sorted(keys, key=lambda key: (relations[key], key))

    def relations(self, keys: Sequence[str]) -> np.ndarray:
        """Return a number for the relation of each fact."""
        return np.unique(self.runs[0].facts.loc[list(keys), "relation"], return_inverse=True)[1]

    def sizes(self, keys: Sequence[str]) -> np.ndarray:
        """Return how many facts each relation has."""
        return np.bincount(self.relations(keys))

    def by_relation(self, parts: np.ndarray, keys: Sequence[str]) -> np.ndarray:
        """Return what each relation adds to a mean over facts, from what each fact does."""
        relations = self.relations(keys)
        n_relations = relations.max() + 1
        return np.eye(n_relations)[relations].T @ parts * n_relations / len(keys)

    def means(self, top: np.ndarray, bottom: np.ndarray, keys: Sequence[str], **how: np.ndarray) -> paired.Means:
        """Return ``paired.means`` of some facts' values."""
        return paired.means(top, bottom, self.relations(keys), n_resamples=self.n_resamples, seed=self.seed, **how)

    def cells(self, runs: Sequence[ComparedRun], keys: list[str], *, answered: bool = False) -> Cells:
        """Return all statistics of some runs on some facts; with ``answered`` those of answers alone.

        ``mean_depth`` is that of the facts which have neurons in all these runs.
        """
        if not keys:
            return {}
        ratios = {
            (run.name, *name): ratio for run in runs for name, ratio in run.ratios(keys, answered=answered).items()
        }
        top, bottom = (np.stack([ratio[i] for ratio in ratios.values()], axis=1) for i in (0, 1))
        cells = self._cells_of_means(list(ratios), top, bottom, keys)
        if not answered:
            for run in runs:
                cells |= self._shared(run, keys)
            depths = np.array([run.depths(keys) for run in runs]).T
            there = ~np.isnan(depths).any(1)
            names = [(run.name, "mean_depth", "found") for run in runs]
            depths, keys = depths[there], [key for key, is_there in zip(keys, there, strict=True) if is_there]
            cells |= self._cells_of_means(names, depths, np.ones_like(depths), keys)
        return cells

    def _cells_of_means(
        self, names: Sequence[tuple[str, str, str]], top: np.ndarray, bottom: np.ndarray, keys: list[str]
    ) -> Cells:
        if not keys:
            return {}
        found = self.means(top, bottom, keys, pooled=np.array([statistic in POOLED for _, statistic, _ in names]))
        sizes, by_relation = self.sizes(keys), self.by_relation(found.parts, keys)
        return {
            name: Cell(
                drawn=found.drawn[:, i], sizes=sizes, within=_within(name[1]),
                facts=found.parts[:, i], relations=by_relation[:, i], n=len(keys),
            )
            for i, name in enumerate(names)
        }  # fmt: skip

    def _shared(self, run: ComparedRun, keys: list[str]) -> Cells:
        """Return how many neurons facts share, within their relation and beyond."""
        relations = self.relations(keys)
        sizes = np.bincount(relations)
        n_pairs = sizes * (sizes - 1) // 2
        cells: Cells = {}
        for kind, sets in run.neurons.items():
            groups = {str(r): [sets[keys[i]] for i in np.flatnonzero(relations == r)] for r in range(len(sizes))}
            exact, drawn = exact_and_drawn(groups, self.n_resamples, self.seed)
            drawn = {name: np.append(exact[name][-1], drawn[name][:, -1]) for name in OF_SETS}
            how = {"sizes": sizes, "within": _within("shared_within")}
            cells[run.name, "shared_across", kind] = Cell(drawn=drawn["shared_across"], n=len(keys), **how)
            # A relation with one fact has no pairs, and adds nothing.
            pairs_shared = np.nan_to_num(exact["shared_within"][:-1]) * n_pairs
            cells[run.name, "shared_within", kind] = Cell(
                drawn=drawn["shared_within"],
                relations=pairs_shared * len(sizes) / n_pairs.sum() if n_pairs.any() else None,
                n=int(n_pairs.sum()),
                **how,
            )
        return cells


def _within(statistic: str) -> tuple[float, float]:
    """Return where a statistic lies, whatever the facts are."""
    return SHARE if statistic in SHARES else (0.0 if statistic in SIZES else -np.inf, np.inf)
