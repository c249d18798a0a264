"""Table 2, Figure 3 and the table of experts, with bootstrap intervals, from neuron sets: of a run, or of files.

All functions take ``{neuron_set: {relation: sets}}``, a set for each fact. Intervals are of bootstrap samples of each
relation's facts (``kn_lens.neurons.overlap``, ``kn_lens._core.intervals``): they say how much depends on which facts
were queried, the relations being given.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kn_lens._core import defaults
from kn_lens._core.bootstrap import with_control
from kn_lens._core.intervals import SHARE, interval
from kn_lens._core.layout import NeuronLayout
from kn_lens._core.notation import SHARED
from kn_lens.neurons import (
    OVERLAP_STATISTICS,
    NeuronSet,
    SetsByRelation,
    overlap_statistics,
    resampled_layer_counts,
    resampled_sums,
    sampled_across,
)
from kn_lens.runs.directory import ALL
from kn_lens.runs.paper import TABLE_2

if TYPE_CHECKING:
    import pandas as pd

AT_LEAST_0 = (0.0, np.inf)


def overlap_table(
    sets: Mapping[str, SetsByRelation],
    *,
    across_samples: int = 0,
    n_resamples: int = defaults.N_RESAMPLES,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return Table 2: the number of neurons of a fact, and of those shared with facts of its relation and of others.

    Args:
        sets: by neuron set and relation.
        across_samples: compare each fact with so many of other relations, drawn at random, as the released code does
            with 100; 0 gives the exact mean of that draw. The interval is that of the exact mean.
        n_resamples: bootstrap samples.
        seed: of the bootstrap and the draw.

    Returns:
        One row for each ``statistic`` (see ``kn_lens.neurons.overlap``), ``neuron_set`` and ``relation``, ``all`` of
        them last: ``value`` with ``low`` and ``high``, the 95% interval; ``n``, facts or pairs of facts; ``control``,
        the value of random neurons; and the ``paper``'s value. NaN where there is nothing to compare; no interval of
        fewer than 8 facts.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    for neuron_set, by_relation in sets.items():
        exact, resampled = overlap_statistics(by_relation, n_resamples, seed)
        values = dict(exact)
        if across_samples:
            values["shared_across"] = sampled_across(by_relation, across_samples, seed)
        n_facts = np.array([len(group) for group in by_relation.values()])
        n_pairs = n_facts * (n_facts - 1) // 2
        for statistic in OVERLAP_STATISTICS:
            n = n_pairs if statistic == "shared_within" else n_facts
            for column, relation in enumerate([*by_relation, ALL]):
                is_all = relation == ALL
                draws = np.append(exact[statistic][column], resampled[statistic][:, column])
                row = {
                    "statistic": statistic,
                    "neuron_set": neuron_set,
                    "relation": relation,
                    "value": float(values[statistic][column]),
                    **interval(draws, n_facts if is_all else n_facts[[column]], bounds=AT_LEAST_0),
                    "n": int(n.sum() if is_all else n[column]),
                }
                rows.append(row)
    table = with_control(pd.DataFrame(rows))
    paper = []
    for row in table.to_dict("records"):
        value = np.nan
        if row["relation"] == ALL:
            value = TABLE_2.get((row["statistic"], row["neuron_set"]), np.nan)
        paper.append(value)
    return table.assign(paper=paper)


def table_2(sets: Mapping[str, SetsByRelation], **options: Any) -> "dict[str, pd.DataFrame]":
    """Return ``overlap_table`` in two: ``table2`` for all relations together, and ``table2_by_relation``."""
    table = overlap_table(sets, **options)
    return {
        "table2": table.query("relation == @ALL").reset_index(drop=True),
        "table2_by_relation": table.query("relation != @ALL").reset_index(drop=True),
    }


def layer_table(
    sets: Mapping[str, SetsByRelation],
    n_layers: int,
    *,
    n_resamples: int = defaults.N_RESAMPLES,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return Figure 3: the distribution of the neurons over the layers; a neuron counts once for each fact that has it.

    Args:
        sets: by neuron set and relation.
        n_layers: of the model.
        n_resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        One row for each ``neuron_set`` and ``layer``: ``value``, the layer's share of all neurons, with ``low`` and
        ``high``; ``n``, the number of facts, and ``n_neurons``, that of neurons; ``control``, the share of an even
        spread. (The ``random`` neurons lie in the layers of the found ones, and so have the same shares.)

    Raises:
        ArgumentError: a neuron lies above the last layer.
    """
    import pandas as pd

    rows = []
    for neuron_set, by_relation in sets.items():
        n_facts = np.array([len(group) for group in by_relation.values()])
        counts = resampled_layer_counts(by_relation, n_layers, n_resamples, seed)
        with np.errstate(invalid="ignore"):
            shares = counts / counts.sum(1, keepdims=True)
        for layer in range(n_layers):
            row = {
                "neuron_set": neuron_set,
                "layer": layer,
                "value": shares[0, layer],
                **interval(shares[:, layer], n_facts, bounds=SHARE),
                "n": n_facts.sum(),
                "n_neurons": int(counts[0, layer]),
                "control": 1 / n_layers,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def expert_table(
    sets: Mapping[str, SetsByRelation],
    layout: NeuronLayout,
    *,
    n_resamples: int = defaults.N_RESAMPLES,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return the distribution of the neurons over the experts; a neuron counts once for each fact that has it.

    Args:
        sets: by neuron set and relation.
        layout: of a model whose layers have experts.
        n_resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        One row for each ``neuron_set``, ``layer`` and ``expert`` (a number, or ``shared``) in which any fact of any set
        has a neuron: ``value``, the expert's share of all neurons of the set, with ``low`` and ``high``; ``n``, the
        number of facts; ``n_neurons``, that of neurons, and ``n_facts``, that of facts with any of them; ``control``,
        the share of an even spread over all neurons of the model. Neurons of layers with one MLP are in the whole and
        have no row: shares of a set add to 1 where all layers have experts.
    """
    import pandas as pd

    with_neurons: set[tuple[int, ...]] = set()  # (layer, expert)
    for by_relation in sets.values():
        for neurons in chain.from_iterable(by_relation.values()):
            with_neurons.update(neuron[:2] for neuron in neurons if neuron.expert is not None)
    experts = sorted(with_neurons)
    n_rows = sum(layer.n_rows for layer in layout.layers)
    rows = []
    for neuron_set, by_relation in sets.items():
        counts = [_counts_by_expert(group, experts) for group in by_relation.values()]
        n_facts = np.array([len(group) for group in by_relation.values()])
        sums = resampled_sums(counts, n_resamples, seed)
        with np.errstate(invalid="ignore"):
            shares = sums / sums.sum(1, keepdims=True)
        for number, (layer, expert) in enumerate(experts):
            row = {
                "neuron_set": neuron_set,
                "layer": layer,
                "expert": "shared" if expert == SHARED else str(expert),
                "value": shares[0, number],
                **interval(shares[:, number], n_facts, bounds=SHARE),
                "n": n_facts.sum(),
                "n_facts": sum(int((of_relation[:, number] > 0).sum()) for of_relation in counts),
                "n_neurons": int(sums[0, number]),
                "control": len(layout.layers[layer].rows_of_expert(expert)) / n_rows,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def _counts_by_expert(
    group: Sequence[NeuronSet],
    experts: Sequence[tuple[int, ...]],
) -> Float[np.ndarray, "fact expert_and_rest"]:
    """Return the number of neurons of each fact in each expert, and in layers with one MLP in the last column."""
    column = {expert: number for number, expert in enumerate(experts)}
    counts = np.zeros((len(group), len(experts) + 1))
    for fact, neurons in enumerate(group):
        for neuron in neurons:
            number = len(experts) if neuron.expert is None else column[neuron[:2]]
            counts[fact, number] += 1
    return counts
