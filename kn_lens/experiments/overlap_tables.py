"""Table 2 and Figure 3 with bootstrap intervals, from neuron sets alone: of a run, or of files found by others.

All functions take ``{kind: {relation: sets}}``, a set for each fact. Intervals come from drawing each relation's facts
anew, with replacement (``_draws`` has the rule): they say how much depends on which facts were asked, the relations
being given. Facts drawn several times are not compared with themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._draws import SHARE, interval, resampled
from kn_lens.experiments.paper import TABLE_2
from kn_lens.experiments.study import ALL
from kn_lens.neuron_sets import Neuron, NeuronSet

if TYPE_CHECKING:
    import pandas as pd

SetsByRelation = Mapping[str, Sequence[NeuronSet]]

STATISTICS = ("neurons_per_fact", "shared_within", "shared_across")
RESAMPLES_AT_ONCE = 100


def overlap_table(
    sets: Mapping[str, SetsByRelation],
    *,
    across_samples: int = 0,
    n_resamples: int = 1000,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return Table 2: how many neurons a fact has, and shares with facts of its relation and of others.

    Args:
        sets: by kind of neurons and relation.
        across_samples: compare each fact with so many of other relations, drawn at random, as the released code does
            with 100; 0 gives the exact mean of that draw. The interval is that of the exact mean.
        n_resamples: bootstrap samples.
        seed: of the bootstrap and the draw.

    Returns:
        One row for each ``statistic``, kind of ``neurons`` and ``relation``, ``all`` of them last.
        Statistics are ``neurons_per_fact``, ``shared_within`` (mean over pairs of facts of a relation; pairs of all
        relations count alike), and ``shared_across`` (mean over facts of the number shared with a random fact of a
        random other relation). With each goes its
        ``value`` with ``low`` and ``high``, the 95% interval; ``n``, facts or pairs; ``control``, the value of random
        neurons; and the ``paper``'s. NaN where there is nothing to compare; no interval of fewer than 8 facts.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    for kind, of_relation in sets.items():
        exact, drawn = exact_and_drawn(of_relation, n_resamples, seed)
        sampled = {"shared_across": _sampled_across(of_relation, across_samples, seed)} if across_samples else {}
        n_facts = np.array([len(found) for found in of_relation.values()])
        counts = {"neurons_per_fact": n_facts, "shared_within": n_facts * (n_facts - 1) // 2, "shared_across": n_facts}
        for statistic in STATISTICS:
            for place, relation in enumerate([*of_relation, ALL]):
                drawn_here = np.append(exact[statistic][place], drawn[statistic][:, place])
                row = {
                    "statistic": statistic,
                    "neurons": kind,
                    "relation": relation,
                    "value": float(sampled.get(statistic, exact[statistic])[place]),
                    **interval(drawn_here, n_facts if relation == ALL else n_facts[[place]], within=(0.0, np.inf)),
                    "n": int(counts[statistic].sum() if relation == ALL else counts[statistic][place]),
                }
                rows.append(row)
    table = pd.DataFrame(rows)
    table["control"] = _controls(table, ["statistic", "relation"])
    table["paper"] = [
        TABLE_2.get((statistic, kind), float("nan")) if relation == ALL else float("nan")
        for statistic, kind, relation in zip(table["statistic"], table["neurons"], table["relation"], strict=True)
    ]
    return table


def table_2(sets: Mapping[str, SetsByRelation], **how: Any) -> "dict[str, pd.DataFrame]":
    """Return ``overlap_table`` in two: ``table2`` for all relations together, and ``table2_by_relation``."""
    table = overlap_table(sets, **how)
    return {
        "table2": table.query("relation == @ALL").reset_index(drop=True),
        "table2_by_relation": table.query("relation != @ALL").reset_index(drop=True),
    }


def layer_table(
    sets: Mapping[str, SetsByRelation], n_layers: int, *, n_resamples: int = 1000, seed: int = 0
) -> "pd.DataFrame":
    """Return Figure 3: how the neurons of all facts spread over the layers; a neuron counts once for each fact.

    Args:
        sets: by kind of neurons and relation.
        n_layers: of the model.
        n_resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        One row for each kind of ``neurons`` and ``layer``: ``value``, the share of all, with ``low`` and ``high``;
        ``n``, how many facts, and ``n_neurons``, how many neurons; ``control``, what neurons drawn from all layers
        alike would have. (The ``random`` neurons lie in the layers of those found, and so have the same shares.)

    Raises:
        ArgumentError: a neuron lies above the last layer.
    """
    import pandas as pd

    rows = []
    for kind, of_relation in sets.items():
        generator = np.random.default_rng(seed)
        sizes = np.array([len(found) for found in of_relation.values()])
        drawn = np.zeros((1 + n_resamples, n_layers))
        for found in of_relation.values():
            counts = np.array([one.layer_counts(n_layers) for one in found], dtype=float)
            drawn += resampled(len(found), n_resamples, generator) @ counts
        with np.errstate(invalid="ignore"):
            shares = drawn / drawn.sum(1, keepdims=True)
        for layer in range(n_layers):
            row = {"neurons": kind, "layer": layer, "value": shares[0, layer]}
            row |= interval(shares[:, layer], sizes, within=SHARE)
            rows.append({**row, "n": sizes.sum(), "n_neurons": int(drawn[0, layer]), "control": 1 / n_layers})
    return pd.DataFrame(rows)


Statistics = dict[str, np.ndarray]
"""By name: ``[draw, relation]``, with all relations together in the last column."""


def exact_and_drawn(sets: SetsByRelation, n_resamples: int, seed: int) -> tuple[Statistics, Statistics]:
    """Return the statistics of the facts as they are (without the axis of draws), and of facts drawn anew.

    What is drawn depends on the seed and on how many facts each relation has, so that two models' sets of the same
    facts are drawn alike.
    """
    generator = np.random.default_rng(seed)
    held = _Incidence.of(sets)
    exact = held.statistics([np.ones((1, len(found))) for found in sets.values()])
    parts = []
    for start in range(0, n_resamples, RESAMPLES_AT_ONCE):
        n = min(RESAMPLES_AT_ONCE, n_resamples - start)
        parts.append(held.statistics([resampled(len(found), n, generator)[1:] for found in sets.values()]))
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in STATISTICS}
    return {name: values[0] for name, values in exact.items()}, drawn


@dataclass(frozen=True)
class _Incidence:
    """Which facts of each relation have which neurons.

    Attributes:
        has: of each relation, ``[fact, neuron]``.
        columns: of each relation, the numbers of these neurons among all.
        n_neurons: how many there are in all.
    """

    has: list[np.ndarray]
    columns: list[np.ndarray]
    n_neurons: int

    @classmethod
    def of(cls, sets: SetsByRelation) -> "_Incidence":
        number: dict[Neuron, int] = {}
        has, columns = [], []
        for found in sets.values():
            here = {neuron: place for place, neuron in enumerate(dict.fromkeys(chain.from_iterable(found)))}
            incidence = np.zeros((len(found), len(here)), dtype=bool)
            for fact, neurons in enumerate(found):
                incidence[fact, [here[neuron] for neuron in neurons]] = True
            has.append(incidence)
            columns.append(np.array([number.setdefault(neuron, len(number)) for neuron in here], dtype=int))
        return cls(has, columns, len(number))

    def statistics(self, draws: Sequence[np.ndarray]) -> Statistics:
        """Return the statistics of facts drawn so often, ``[draw, fact]`` for each relation.

        With C the number of draws of a relation that have a neuron, its pairs of draws share sum(C (C - 1) / 2)
        neurons, of which those shared by a fact with itself are taken off. A draw shares with a random draw of another
        relation what the shares C / n of both relations say.
        """
        n_draws, n_relations = len(draws[0]), len(draws)
        sizes, n_facts, shared, pairs, across = (np.zeros((n_draws, n_relations)) for _ in range(5))
        carried = np.zeros((n_draws, self.n_neurons), dtype=np.float32)
        shares = []
        for place, (drawn, has, columns) in enumerate(zip(draws, self.has, self.columns, strict=True)):
            count = drawn.astype(np.float32) @ has.astype(np.float32)
            size = has.sum(1)
            sizes[:, place], n_facts[:, place] = drawn @ size, drawn.sum(1)
            shared[:, place] = ((count.astype(float) ** 2).sum(1) - drawn**2 @ size) / 2
            pairs[:, place] = (n_facts[:, place] ** 2 - (drawn**2).sum(1)) / 2
            shares.append(count / drawn.sum(1, keepdims=True).astype(np.float32))
            carried[:, columns] += shares[-1]
        for place, (share, columns) in enumerate(zip(shares, self.columns, strict=True)):
            across[:, place] = (share * (carried[:, columns] - share)).sum(1, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            across /= n_relations - 1
            return {
                "neurons_per_fact": _with_all(sizes, n_facts),
                "shared_within": _with_all(shared, pairs),
                "shared_across": _with_all(across * n_facts, n_facts),
            }


def _with_all(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean of each relation, and that of all together behind them."""
    return np.hstack([sums / counts, sums.sum(1, keepdims=True) / counts.sum(1, keepdims=True)])


def _sampled_across(sets: SetsByRelation, n_samples: int, seed: int) -> np.ndarray:
    """Return what each fact shares with so many random facts of random other relations; means, and that of all."""
    generator = np.random.default_rng([seed, n_samples])
    groups = list(sets.values())
    sums = np.full((1, len(groups)), np.nan)
    if len(groups) > 1:
        lengths = np.array([len(group) for group in groups])
        for place, group in enumerate(groups):
            others = generator.integers(len(groups) - 1, size=(len(group), n_samples))
            others += others >= place
            facts = generator.integers(lengths[others])
            sums[0, place] = sum(
                len(neurons & groups[r][f])
                for neurons, rs, fs in zip(group, others.tolist(), facts.tolist(), strict=True)
                for r, f in zip(rs, fs, strict=True)
            )
    return _with_all(sums / n_samples, np.array([[len(group) for group in groups]]))[0]


def _controls(table: "pd.DataFrame", same: Sequence[str]) -> list[float]:
    """Return for each row the value of random neurons."""
    keys = list(zip(*(table[name] for name in same), strict=True))
    rows = zip(keys, table["neurons"], table["value"], strict=True)
    control = {key: value for key, kind, value in rows if kind == "random"}
    return [control.get(key, float("nan")) for key in keys]
