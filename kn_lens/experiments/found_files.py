"""Table 2 and Figure 3 of neurons found by others, from their files: no model is needed, and no facts.

Files are those that ``NeuronSet.read_many`` and ``refine_released`` read: our own, the released code's
``kn_bag-*.json`` and ``*.rlt.jsonl``, and EleutherAI's, whose keys are ParaRel's uuids and say nothing of relations
without the facts.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments.overlap_tables import layer_table, table_2
from kn_lens.facts import FactSet
from kn_lens.model_identity import ModelIdentity
from kn_lens.neuron_files import read_sets
from kn_lens.neuron_sets import NeuronSet, match_facts
from kn_lens.neurons import refine_released

if TYPE_CHECKING:
    import pandas as pd

SetsByRelation = dict[str, list[NeuronSet]]


def read_found(paths: Iterable[str | Path], facts: FactSet | None = None, metric: str = "ig_gold") -> SetsByRelation:
    """Read the neurons of facts from one or several files, by relation.

    Args:
        paths: neuron files; ``*.jsonl`` are the released code's attributions, and refined here.
        facts: what the keys stand for; None takes the relation from the keys themselves.
        metric: of attributions: ``ig_gold``, ``ig_pred`` or ``base``.

    Raises:
        DataError: a file cannot be read, or a key does not tell the relation.
        ArgumentError: no file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "found.json")
    ...     NeuronSet.write_many(path, {"P36/Ireland/Dublin": NeuronSet([(9, 7)]), "P30/Ireland/Europe": NeuronSet()})
    ...     read_found([path])
    {'P36': [NeuronSet([(9, 7)])], 'P30': [NeuronSet([])]}
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ArgumentError("No neuron file is given; expected one or more.")
    found: SetsByRelation = {}
    for path in paths:
        sets = refine_released(path, metric=metric) if path.suffix == ".jsonl" else NeuronSet.read_many(path)
        if facts is not None:
            for fact, neurons in match_facts(sets, facts).items():
                found.setdefault(fact.relation, []).append(neurons)
            continue
        for key, neurons in sets.items():
            found.setdefault(_relation(key, path), []).append(neurons)
    return found


def check_one_model(paths: Iterable[str | Path]) -> None:
    """Raise where files name different models: their neurons make no table together.

    Raises:
        DataError: naming two files and what tells their models apart.
    """
    first: tuple[Path, ModelIdentity] | None = None
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            continue
        found_in = ModelIdentity.read(read_sets(path)[1])
        if found_in is None:
            continue
        if first is None:
            first = path, found_in
        elif (difference := first[1].difference(found_in)) is not None:
            raise DataError(
                f"{first[0]} holds neurons of {first[1].name}, and {path} of {found_in.name}: {difference}. "
                "Expected files of one model; sum up each model's by itself."
            )


def found_tables(
    sets: Mapping[str, Mapping[str, list[NeuronSet]]], n_layers: int | None = None, **how: Any
) -> "dict[str, pd.DataFrame]":
    """Return Table 2, also by relation, and Figure 3.

    Args:
        sets: by kind of neurons (``found``, ``baseline``) and relation.
        n_layers: of the model; None takes the highest layer in the files for its last.
        **how: ``across_samples``, ``n_resamples``, ``seed``: see ``overlap_table``.

    Raises:
        ArgumentError: a neuron above the last layer.
    """
    if n_layers is None:
        every = (neuron for kind in sets.values() for group in kind.values() for found in group for neuron in found)
        n_layers = max((neuron.layer for neuron in every), default=0) + 1
    of_layers = {name: value for name, value in how.items() if name != "across_samples"}
    return {
        **table_2(sets, **how),
        "figure3": layer_table(sets, n_layers, **of_layers),
    }


def _relation(key: str, path: Path) -> str:
    """Return the relation that a key begins with: ``P36[3]`` or ``P36/Ireland/Dublin``."""
    place, bracket, _ = key.rpartition("[")
    relation = place if bracket and key.endswith("]") else unquote(key.split("/")[0]) if "/" in key else ""
    if not relation:
        raise DataError(
            f"{path}: the key {key!r} does not tell the relation of its fact; expected 'P36[0]' or "
            "'P36/Ireland/Dublin'. Name the facts that the keys stand for with --facts."
        )
    return relation
