"""How the neuron sets of facts overlap, and in which layers they lie (Dai et al. 2022, table 2 and figure 3).

A method that finds what belongs to a fact finds small sets that facts of one relation share in part and facts of
different relations hardly at all. All functions take ``{fact: NeuronSet}`` as ``refine`` returns it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._refining import prompts_needed
from kn_lens._request import check_share
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.neuron_sets import Neuron, NeuronSet

if TYPE_CHECKING:
    import pandas as pd

NeuronsByFact = Mapping[Fact, NeuronSet]


def overlap(a: NeuronSet, b: NeuronSet) -> int:
    """Return how many neurons two sets share.

    >>> overlap(NeuronSet([(9, 7), (9, 8)]), NeuronSet([(9, 8)]))
    1
    """
    return len(a & b)


def jaccard(a: NeuronSet, b: NeuronSet) -> float:
    """Return the share of the union that two sets have in common: 1 for equal sets (two empty ones too).

    >>> jaccard(NeuronSet([(9, 7), (9, 8)]), NeuronSet([(9, 8)]))
    0.5
    """
    return len(a & b) / len(a | b) if a or b else 1.0


def neurons_per_fact(neurons: NeuronsByFact) -> float:
    """Return the mean size of the sets; NaN without facts."""
    return sum(map(len, neurons.values())) / len(neurons) if neurons else float("nan")


def shared_within_relation(neurons: NeuronsByFact) -> float:
    """Return the mean number of neurons that two facts of one relation share, over all such pairs.

    Pairs of all relations count alike, as in the released code, so that relations with many facts weigh most. NaN when
    no relation has two facts.
    """
    within = [_pairs_within(counts, n_facts) for counts, n_facts in _by_relation(neurons).values()]
    n_pairs = sum(n for _, n in within)
    return sum(shared for shared, _ in within) / n_pairs if n_pairs else float("nan")


def shared_across_relations(neurons: NeuronsByFact) -> float:
    """Return the mean number of neurons that a fact shares with a random fact of a random other relation.

    The released code draws 100 such facts for each fact; this is the exact mean of that draw. NaN with one relation.
    """
    across = _across(neurons)
    return float(np.mean(across)) if across else float("nan")


def relation_table(neurons: NeuronsByFact) -> "pd.DataFrame":
    """Return the overlap statistics relation by relation, and for ``all`` of them in the last row.

    Columns: ``relation``, ``n_facts``, ``neurons_per_fact``, ``shared_within`` (mean over pairs of the relation's
    facts), ``shared_across`` (mean over its facts and random facts of other relations).
    """
    import pandas as pd

    groups: dict[str, dict[Fact, NeuronSet]] = {}
    for fact, found in neurons.items():
        groups.setdefault(fact.relation, {})[fact] = found
    across = dict(zip(neurons, _across(neurons), strict=True)) if len(groups) > 1 else {}
    rows = [
        (
            relation,
            len(group),
            neurons_per_fact(group),
            shared_within_relation(group),
            float(np.mean([across[fact] for fact in group])) if across else float("nan"),
        )
        for relation, group in groups.items()
    ]
    within, beyond = shared_within_relation(neurons), shared_across_relations(neurons)
    columns = ["relation", "n_facts", "neurons_per_fact", "shared_within", "shared_across"]
    return pd.DataFrame([*rows, ("all", len(neurons), neurons_per_fact(neurons), within, beyond)], columns=columns)


def layer_distribution(neurons: NeuronsByFact, n_layers: int) -> "pd.DataFrame":
    """Return how the neurons of all facts spread over the layers.

    A neuron counts once for each fact that has it. Columns: ``layer``, ``n_neurons``, ``share`` (of all; NaN when there
    are none).

    Raises:
        ArgumentError: a neuron lies above the last layer.
    """
    import pandas as pd

    counts = np.zeros(n_layers, dtype=np.int64)
    for found in neurons.values():
        counts += found.layer_counts(n_layers)
    share = counts / counts.sum() if counts.sum() else np.full(n_layers, np.nan)
    return pd.DataFrame({"layer": np.arange(n_layers), "n_neurons": counts, "share": share})


def relation_neurons(neurons: NeuronsByFact, *, min_share: float = 0.1, top: int | None = None) -> dict[str, NeuronSet]:
    """Return the neurons that stand for each relation as a whole.

    Args:
        neurons: the sets of facts.
        min_share: a neuron has to be in this share of the relation's sets.
        top: take the ``top`` most frequent ones instead (the paper erases a relation with 20), or all where there are
            fewer; of equally frequent ones the first by layer and index.

    Raises:
        ArgumentError: ``min_share`` outside [0, 1], ``top`` below 1.

    >>> facts = [Fact("Ireland", "P36", "Dublin"), Fact("France", "P36", "Paris")]
    >>> found = {facts[0]: NeuronSet([(9, 7), (9, 8)]), facts[1]: NeuronSet([(9, 8)])}
    >>> relation_neurons(found, top=1)
    {'P36': NeuronSet([(9, 8)])}
    """
    check_share("min_share", min_share)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise ArgumentError(f"top={top!r}; expected a whole number from 1, or None.")
    chosen = {}
    for relation, (counts, n_facts) in _by_relation(neurons).items():
        if top is None:
            needed = prompts_needed(n_facts, min_share, 1)
            chosen[relation] = NeuronSet(neuron for neuron, count in counts.items() if count >= needed)
        else:
            chosen[relation] = NeuronSet(sorted(counts, key=lambda neuron: (-counts[neuron], neuron))[:top])
    return chosen


def _by_relation(neurons: NeuronsByFact) -> dict[str, tuple[Counter[Neuron], int]]:
    """Return, for each relation, in how many of its facts each neuron is, and how many facts it has."""
    counts: dict[str, Counter[Neuron]] = {}
    n_facts: Counter[str] = Counter()
    for fact, found in neurons.items():
        counts.setdefault(fact.relation, Counter()).update(found)
        n_facts[fact.relation] += 1
    return {relation: (counter, n_facts[relation]) for relation, counter in counts.items()}


def _pairs_within(counts: Counter[Any], n_facts: int) -> tuple[int, int]:
    """Return the neurons shared, summed over all pairs of facts, and the number of pairs.

    A neuron of c facts is shared by c (c - 1) / 2 pairs, so no pair has to be looked at.
    """
    return sum(c * (c - 1) // 2 for c in counts.values()), n_facts * (n_facts - 1) // 2


def _across(neurons: NeuronsByFact) -> list[float]:
    """Return for each fact the expected number of neurons shared with a random fact of a random other relation."""
    groups = _by_relation(neurons)
    if len(groups) < 2:
        return []
    carried: dict[Neuron, float] = {}  # sum over relations of the share of their facts that have a neuron
    for counts, n_facts in groups.values():
        for neuron, count in counts.items():
            carried[neuron] = carried.get(neuron, 0.0) + count / n_facts
    expected = []
    for fact, found in neurons.items():
        own, n_facts = groups[fact.relation]
        elsewhere = sum(carried[neuron] - own[neuron] / n_facts for neuron in found)
        expected.append(elsewhere / (len(groups) - 1))
    return expected
