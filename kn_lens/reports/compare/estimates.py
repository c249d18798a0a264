"""Statistics of runs on the same facts, with common bootstrap draws, so that their differences are paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from kn_lens._core.bootstrap import RatioBootstrap, bootstrap_ratios
from kn_lens._core.intervals import SHARE, interval
from kn_lens._core.names import EDITOR_NAMES, editor_statistic
from kn_lens.errors import DataError
from kn_lens.neurons import ALPHA, OVERLAP_STATISTICS, NeuronSet, overlap_statistics
from kn_lens.reports.compare.requested import REQUESTED
from kn_lens.reports.compare.runs import ComparedRun, Ratios

if TYPE_CHECKING:
    import pandas as pd

OF_EDITORS = tuple(editor_statistic(of, name) for name in EDITOR_NAMES for of in ("success", "kept"))
"""Statistics of editors, each with its success and what it keeps."""
STATISTICS = (
    "accuracy",
    "nll",
    "known",
    *OVERLAP_STATISTICS,
    "mean_depth",
    "suppress_own",
    "suppress_other",
    "amplify_own",
    "amplify_other",
    "suppress_at_subject",
    "circuit_nodes",
    "circuit_at_read",
    "faithfulness_100",
    "completeness_100",
    "query_depth",
    "taken",
    "degenerate",
    "smallest_set",
    "smallest_suffices",
    "consistent",
    "wordings_jaccard",
    *OF_EDITORS,
)
"""All statistics, in the order of the tables."""
OF_SOME_FACTS = ("taken", "degenerate", "smallest_set", "smallest_suffices", "consistent", "wordings_jaccard")
"""Statistics of facts that some relations may have none of."""
POOLED = ("known", "neurons_per_fact", *OF_SOME_FACTS)
"""Statistics that are ratios over all facts together. The others are means over relations."""
DEPTHS = ("mean_depth", "query_depth")
"""Statistics that are depths of neurons."""
SHARES = (
    "accuracy",
    "known",
    "circuit_at_read",
    "taken",
    "degenerate",
    "smallest_suffices",
    "consistent",
    "wordings_jaccard",
    *DEPTHS,
    *OF_EDITORS,
)
"""Statistics between 0 and 1."""
NON_NEGATIVE = ("nll", "circuit_nodes", "smallest_set", *OVERLAP_STATISTICS)
"""Statistics of at least 0."""


def bounds_of(statistic: str) -> tuple[float, float]:
    """Return the range of a statistic, whatever the facts are."""
    if statistic in SHARES:
        return SHARE
    if statistic in NON_NEGATIVE:
        return 0.0, np.inf
    return -np.inf, np.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A statistic of a run, or the difference of two, with its bootstrap.

    Attributes:
        drawn: its value on the facts themselves, then on each bootstrap draw.
        facts: contribution of each fact, whose mean is the value. None for statistics of pairs of facts.
        relations: contribution of each relation, likewise. None for statistics of pairs of relations.
        sizes: number of facts of each relation.
        bounds: range of the statistic, whatever the facts are.
        n: number of facts, or of pairs of facts.
    """

    drawn: np.ndarray
    sizes: np.ndarray
    bounds: tuple[float, float] = (-np.inf, np.inf)
    facts: np.ndarray | None = None
    relations: np.ndarray | None = None
    n: int

    @property
    def value(self) -> float:
        """The value on the facts themselves."""
        return float(self.drawn[0])

    def row(self) -> dict[str, float]:
        """Return ``value``, ``low``, ``high`` and ``n``."""
        return {
            "value": self.value,
            **interval(
                self.drawn,
                self.sizes,
                bounds=self.bounds,
            ),
            "n": self.n,
        }

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference of two statistics of the same facts."""
        return Estimate(
            drawn=self.drawn - other.drawn,
            sizes=self.sizes,
            facts=_difference(self.facts, other.facts),
            relations=_difference(self.relations, other.relations),
            n=self.n,
        )


def _difference(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    if a is None or b is None:
        return None
    return a - b


EstimateKey = tuple[str, str, str]
"""Run, statistic and neuron set. The neuron set is empty for statistics of answers."""
Estimates = dict[EstimateKey, Estimate]


def control_value(
    estimates: Estimates,
    run: str,
    statistic: str,
    *,
    mean_depth: float,
    consistent: float = ALPHA,
) -> float:
    """Return the control of a statistic; NaN without one.

    Args:
        estimates: all estimates on a set of facts.
        run: name of the run.
        statistic: name of the statistic.
        mean_depth: control of depths: neurons spread evenly over the layers. Random neurons have the layers of the
            found ones.
        consistent: control of the share of consistent facts: those that chance alone would make consistent.
    """
    if statistic in DEPTHS:
        return mean_depth
    if statistic == "consistent":
        return consistent
    if statistic == "neurons_per_fact":
        return np.nan  # there are as many random neurons as found ones
    control = "majority" if statistic in ("accuracy", "known") else "random"
    estimate = estimates.get((run, statistic, control))
    return np.nan if estimate is None else estimate.value


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimator:
    """Runs with the settings of their bootstrap and tests.

    Attributes:
        runs: all compared runs.
        n_resamples: number of bootstrap samples.
        n_permutations: number of permutations of a test.
        seed: of the bootstrap and the tests.
    """

    runs: tuple[ComparedRun, ...]
    n_resamples: int
    n_permutations: int
    seed: int

    @cached_property
    def common(self) -> "pd.Index":
        """Keys of the facts that all runs have, with the same templates.

        Raises:
            DataError: There is none.
        """
        first = self.runs[0].facts
        common = first.index
        same_key = first.index
        for run in self.runs[1:]:
            same_key = same_key.intersection(run.facts.index)
            common = common.intersection(run.facts.index)
            digests = run.facts.loc[common, "digest"].to_numpy()
            first_digests = first.loc[common, "digest"].to_numpy()
            common = common[digests == first_digests]
        if not len(common):
            reason = "none is in all"
            if len(same_key):
                reason = f"{len(same_key):,} are in all, but with different templates"
            names = ", ".join(run.name for run in self.runs)
            raise DataError(
                f"{names} have no fact in common ({reason}); expected runs on the same facts, or on overlapping sets."
            )
        return common

    def queried_by(self, runs: Sequence[ComparedRun]) -> list[str]:
        """Return the common facts that all models of some runs were queried with, by relation and key."""
        return self._ordered([run.queried for run in runs])

    def known_to(self, runs: Sequence[ComparedRun]) -> list[str]:
        """Return the common facts that all models of some runs know, by relation and key."""
        return self._ordered([run.known for run in runs])

    def _ordered(self, subsets: "Sequence[pd.Index]") -> list[str]:
        keys = self.common
        for subset in subsets:
            keys = keys.intersection(subset)
        relations = self.runs[0].facts["relation"]
        return sorted(keys, key=lambda key: (relations[key], key))

    def relations(self, keys: Sequence[str]) -> np.ndarray:
        """Return the number of each fact's relation."""
        return np.unique(self.runs[0].facts.loc[list(keys), "relation"], return_inverse=True)[1]

    def sizes(self, keys: Sequence[str]) -> np.ndarray:
        """Return the number of facts of each relation."""
        return np.bincount(self.relations(keys))

    def by_relation(self, contributions: np.ndarray, keys: Sequence[str]) -> np.ndarray:
        """Return the contribution of each relation to a mean over facts, from the contributions of the facts."""
        relations = self.relations(keys)
        n_relations = relations.max() + 1
        return np.eye(n_relations)[relations].T @ contributions * n_relations / len(keys)

    def ratios(
        self,
        numerators: np.ndarray,
        denominators: np.ndarray,
        keys: Sequence[str],
        pooled: np.ndarray | None = None,
    ) -> RatioBootstrap:
        """Return ``bootstrap_ratios`` of the values of facts."""
        return bootstrap_ratios(
            numerators,
            denominators,
            self.relations(keys),
            pooled=pooled,
            n_resamples=self.n_resamples,
            seed=self.seed,
        )

    def answer_estimates(self, runs: Sequence[ComparedRun], keys: list[str]) -> Estimates:
        """Return the statistics of the answers of some runs on some facts."""
        if not keys:
            return {}
        ratios = {}
        for run in runs:
            ratios[run.name] = run.answer_ratios(keys)
        return self._ratio_estimates(ratios, keys)

    def estimates(self, runs: Sequence[ComparedRun], keys: list[str]) -> Estimates:
        """Return all statistics of some runs on some facts.

        ``mean_depth`` is that of the facts with neurons in all of these runs.
        """
        if not keys:
            return {}
        ratios = {}
        for run in runs:
            ratios[run.name] = run.answer_ratios(keys) | run.neuron_ratios(keys)
        estimates = self._ratio_estimates(ratios, keys)
        for run in runs:
            estimates |= self._overlap_estimates(run, keys)
        return estimates | self._depth_estimates(runs, keys)

    def requested_estimates(self) -> Estimates:
        """Return the statistics of the stages on request that all runs have, on the facts that each measured in all."""
        estimates: Estimates = {}
        for stage in REQUESTED:
            tables = [run.requested.get(stage.name, {}) for run in self.runs]
            names = [name for name in tables[0] if all(name in table for table in tables)]
            keys = self._ordered([table[name].index for table in tables for name in names]) if names else []
            if not keys:
                continue
            ratios: dict[str, Ratios] = {}
            for run, table in zip(self.runs, tables, strict=True):
                of_run: Ratios = {}
                for name in names:
                    rows = table[name].loc[keys]
                    of_run[name] = rows["numerator"].to_numpy(), rows["denominator"].to_numpy()
                ratios[run.name] = of_run
            estimates |= self._ratio_estimates(ratios, keys)
        return estimates

    def _ratio_estimates(self, ratios_by_run: dict[str, Ratios], keys: list[str]) -> Estimates:
        names: list[EstimateKey] = []
        numerators = []
        denominators = []
        for run, ratios in ratios_by_run.items():
            for (statistic, neuron_set), (numerator, denominator) in ratios.items():
                names.append((run, statistic, neuron_set))
                numerators.append(numerator)
                denominators.append(denominator)
        return self._mean_estimates(
            names,
            np.stack(numerators, axis=1),
            np.stack(denominators, axis=1),
            keys,
        )

    def _depth_estimates(self, runs: Sequence[ComparedRun], keys: list[str]) -> Estimates:
        names: list[EstimateKey] = []
        columns = []
        for run in runs:
            names.append((run.name, "mean_depth", "found"))
            columns.append(run.depths(keys))
        depths = np.stack(columns, axis=1)
        has_neurons = ~np.isnan(depths).any(1)
        depths = depths[has_neurons]
        chosen = np.array(keys, dtype=object)[has_neurons].tolist()
        return self._mean_estimates(names, depths, np.ones_like(depths), chosen)

    def _mean_estimates(
        self,
        names: Sequence[EstimateKey],
        numerators: np.ndarray,
        denominators: np.ndarray,
        keys: list[str],
    ) -> Estimates:
        if not keys:
            return {}
        pooled = np.array([statistic in POOLED for _, statistic, _ in names])
        bootstrap = self.ratios(numerators, denominators, keys, pooled=pooled)
        by_relation = self.by_relation(bootstrap.contributions, keys)
        sizes = self.sizes(keys)
        estimates: Estimates = {}
        for i, name in enumerate(names):
            estimates[name] = Estimate(
                drawn=bootstrap.drawn[:, i],
                sizes=sizes,
                bounds=bounds_of(name[1]),
                facts=bootstrap.contributions[:, i],
                relations=by_relation[:, i],
                n=len(keys),
            )
        return estimates

    def _overlap_estimates(self, run: ComparedRun, keys: list[str]) -> Estimates:
        """Return the number of neurons that facts share, within their relation and across relations."""
        relations = self.relations(keys)
        sizes = np.bincount(relations)
        n_pairs = sizes * (sizes - 1) // 2
        estimates: Estimates = {}
        for neuron_set, sets in run.neurons.items():
            groups: dict[str, list[NeuronSet]] = {}
            for key, relation in zip(keys, relations.tolist(), strict=True):
                groups.setdefault(str(relation), []).append(sets[key])
            exact, drawn = overlap_statistics(groups, self.n_resamples, self.seed)
            shared_across = np.append(exact["shared_across"][-1], drawn["shared_across"][:, -1])
            shared_within = np.append(exact["shared_within"][-1], drawn["shared_within"][:, -1])
            contributions = None
            if n_pairs.any():
                # A relation with one fact has no pairs and contributes nothing.
                shared_by_pairs = np.nan_to_num(exact["shared_within"][:-1]) * n_pairs
                contributions = shared_by_pairs * len(sizes) / n_pairs.sum()
            estimates[run.name, "shared_across", neuron_set] = Estimate(
                drawn=shared_across,
                sizes=sizes,
                bounds=bounds_of("shared_across"),
                n=len(keys),
            )
            estimates[run.name, "shared_within", neuron_set] = Estimate(
                drawn=shared_within,
                sizes=sizes,
                bounds=bounds_of("shared_within"),
                relations=contributions,
                n=int(n_pairs.sum()),
            )
        return estimates
