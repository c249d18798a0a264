"""Table 2 and Figure 3 of neurons found elsewhere, from neuron files alone: no model is needed, and no facts.

The files are those that ``NeuronSet.read_many`` and ``refine_released`` read: files of kn_lens, ``kn_bag-*.json`` and
``*.rlt.jsonl`` of the released code, and files of EleutherAI's knowledge-neurons. The keys of the latter are uuids of
ParaRel, from which the relation cannot be read without the facts.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from kn_lens._core import defaults
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import FactSet
from kn_lens.hosts import ModelIdentity
from kn_lens.neurons import NeuronSet, match_facts, read_sets, refine_released
from kn_lens.runs.overlap_tables import layer_table, table_2

if TYPE_CHECKING:
    import pandas as pd

SetsByRelation = dict[str, list[NeuronSet]]


def read_found(paths: Iterable[str | Path], facts: FactSet | None = None, metric: str = "ig_gold") -> SetsByRelation:
    """Read the neurons of facts from one or several files, by relation.

    Args:
        paths: neuron files; ``*.jsonl`` are attributions of the released code, which are refined here.
        facts: the facts that the keys stand for; None takes the relation from the keys themselves.
        metric: the attributions to refine: ``ig_gold``, ``ig_pred`` or ``base``.

    Raises:
        DataError: a file cannot be read, or a key does not tell the relation.
        ArgumentError: no file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "found.json")
    ...     NeuronSet.write_many(path, {"P36/Ireland/Dublin": NeuronSet([(9, 7)]), "P30/Ireland/Europe": NeuronSet()})
    ...     read_found([path])
    {'P36': [NeuronSet(['L9N7'])], 'P30': [NeuronSet([])]}
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ArgumentError("No neuron file is given; expected one or more.")
    found: SetsByRelation = {}
    for path in paths:
        if path.suffix == ".jsonl":
            sets = refine_released(path, metric=metric)
        else:
            sets = NeuronSet.read_many(path)
        if facts is not None:
            for fact, neurons in match_facts(sets, facts).items():
                found.setdefault(fact.relation, []).append(neurons)
        else:
            for key, neurons in sets.items():
                found.setdefault(_relation(key, path), []).append(neurons)
    return found


def check_one_model(paths: Iterable[str | Path]) -> None:
    """Check that no two files name different models, whose neurons could not be counted in one table.

    Raises:
        DataError: two files name different models.
    """
    first_path: Path | None = None
    first_model: ModelIdentity | None = None
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            continue
        _, model_entry = read_sets(path)
        model = ModelIdentity.read(model_entry)
        if model is None:
            continue
        if first_model is None:
            first_path, first_model = path, model
            continue
        difference = first_model.difference(model)
        if difference is not None:
            raise DataError(
                f"{first_path} holds neurons of {first_model.name}, and {path} of {model.name}: {difference}. "
                "Expected files of one model; summarise the files of each model separately."
            )


def found_tables(
    sets: Mapping[str, Mapping[str, list[NeuronSet]]],
    n_layers: int | None = None,
    *,
    across_samples: int = 0,
    n_resamples: int = defaults.N_RESAMPLES,
    seed: int = 0,
) -> "dict[str, pd.DataFrame]":
    """Return Table 2, also by relation, and Figure 3.

    Args:
        sets: neurons of each fact, by kind (``found``, ``baseline``) and relation.
        n_layers: number of layers of the model; None takes the highest layer in the files for the last one.
        across_samples: see ``overlap_table``.
        n_resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ArgumentError: a neuron lies above the last layer.
    """
    if n_layers is None:
        n_layers = 1 + _highest_layer(sets)
    tables = table_2(sets, across_samples=across_samples, n_resamples=n_resamples, seed=seed)
    figure_3 = layer_table(sets, n_layers, n_resamples=n_resamples, seed=seed)
    return {**tables, "figure3": figure_3}


def _highest_layer(sets: Mapping[str, Mapping[str, list[NeuronSet]]]) -> int:
    """Return the highest layer with a neuron; 0 where there is no neuron."""
    highest = 0
    for sets_by_relation in sets.values():
        for relation_sets in sets_by_relation.values():
            for neurons in relation_sets:
                for neuron in neurons:
                    highest = max(highest, neuron.layer)
    return highest


def _relation(key: str, path: Path) -> str:
    """Return the relation that a key begins with: ``P36[3]`` or ``P36/Ireland/Dublin``."""
    before_bracket, bracket, _ = key.rpartition("[")
    if bracket and key.endswith("]"):
        relation = before_bracket
    elif "/" in key:
        relation = unquote(key.split("/")[0])
    else:
        relation = ""
    if not relation:
        raise DataError(
            f"{path}: the key {key!r} does not tell the relation of its fact; expected 'P36[0]' or "
            "'P36/Ireland/Dublin'. Name the facts that the keys stand for with --facts."
        )
    return relation
