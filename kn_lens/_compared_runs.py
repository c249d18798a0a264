"""Finished runs, read so that they can be compared, fact by fact; or the reason why they cannot."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._run_records import RunRecords, checked_path
from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments import answers, asking, modulation, refining
from kn_lens.experiments.run_directory import PROVENANCE
from kn_lens.experiments.running import with_needs
from kn_lens.experiments.study import Stage
from kn_lens.neuron_sets import NeuronSet

if TYPE_CHECKING:
    import pandas as pd

StrPath = str | os.PathLike[str]
Ratios = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""By statistic and kind of neurons: numerators and denominators, one a fact."""

READ = {
    asking.STAGE: (asking.SCHEMA, "coverage", ()),
    answers.STAGE: (answers.SCHEMA, "answers", ()),
    refining.STAGE: (refining.SCHEMA, "table2", ("neurons",)),
    modulation.EFFECTS: (modulation.SCHEMA, "figures4_5", ("factor", "facts", "neurons")),
}
"""The stages that are read, with what their records hold, a table that is there when they are done, and the columns of
which each combination has a row for each fact that was asked."""
PARTS = {0.0: "suppress", 2.0: "amplify"}
"""What the factors of the stage ``effects`` do, in the names of statistics."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedRun:
    """The records of a finished run.

    Attributes:
        name: what the user calls it.
        path: its directory.
        config: its settings.
        provenance: what it was made from.
        tags: what tells its model, and its settings, from those of other runs.
        facts: records of the stage ``facts``, by key; and so the next ones.
        answers: of ``answers``.
        neurons: of ``neurons``: ``{kind: {key: NeuronSet}}``.
        effects: of ``effects``, as they are.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    tags: Mapping[str, str | int | float]
    facts: "pd.DataFrame"
    answers: "pd.DataFrame"
    neurons: Mapping[str, Mapping[str, NeuronSet]]
    effects: "pd.DataFrame" = field(repr=False)

    @property
    def n_layers(self) -> int:
        """Blocks of its model."""
        return self.provenance["model"]["n_layers"]

    @cached_property
    def asked(self) -> "pd.Index":
        """Keys of the facts that its model was asked for."""
        return self.facts.index[self.facts["asked"]]

    @cached_property
    def known(self) -> "pd.Index":
        """Keys of the facts that its model knows: it is right in at least half of the prompts."""
        return self.answers.index[2 * self.answers["n_right"] >= self.answers["n_prompts"]]

    def depths(self, keys: Sequence[str]) -> np.ndarray:
        """Return the mean depth of each fact's neurons, 0 to 1: of layer l of L, (l + 1/2) / L; NaN without any."""
        found = self.neurons["found"]
        means = [np.mean([neuron.layer for neuron in found[key]]) if found[key] else np.nan for key in keys]
        return (np.array(means, dtype=float) + 0.5) / self.n_layers

    def cumulative(self, keys: Sequence[str], depths: np.ndarray) -> np.ndarray:
        """Return the share of each fact's neurons up to some depths, ``[fact, depth]``.

        The neurons of layer l of L are spread evenly over the depths from l/L to (l+1)/L, of which no more is known.
        The facts must have neurons.
        """
        edges = np.linspace(0, 1, self.n_layers + 1)
        counts = np.array([self.neurons["found"][key].layer_counts(self.n_layers) for key in keys], dtype=float)
        counts = counts.reshape(len(keys), self.n_layers)
        shares = np.cumsum(np.pad(counts, ((0, 0), (1, 0))), axis=1) / counts.sum(1, keepdims=True)
        return np.array([np.interp(depths, edges, of_fact) for of_fact in shares]).reshape(len(keys), len(depths))

    def ratios(self, keys: Sequence[str], *, answered: bool = False) -> Ratios:
        """Return what the statistics of facts are ratios of.

        Args:
            keys: of the facts.
            answered: only the statistics of answers.

        Returns:
            By statistic and kind of neurons, a numerator and a denominator for each fact. The statistic of a relation
            is the sum of the one over that of the other.
        """
        mine = self.answers.loc[list(keys)]
        n_prompts = mine["n_prompts"].to_numpy(dtype=float)
        ones = np.ones(len(mine))
        majority = _is_most_frequent(mine).astype(float)
        ratios = {
            ("accuracy", ""): (mine["n_right"].to_numpy(dtype=float), n_prompts),
            ("accuracy", "majority"): (majority * n_prompts, n_prompts),
            ("nll", ""): (mine["nll"].to_numpy() * n_prompts, n_prompts),
            ("known", ""): (mine.index.isin(self.known).astype(float), ones),
            ("known", "majority"): (majority, ones),
        }
        if answered:
            return ratios
        sizes = {
            ("neurons_per_fact", kind): (np.array([len(sets[key]) for key in keys], dtype=float), ones)
            for kind, sets in self.neurons.items()
        }
        return {**ratios, **sizes, **self._effects(keys)}

    def change_ratios(self, keys: Sequence[str], statistic: str, neurons: str) -> np.ndarray:
        """Return ``(after - before) / before`` of facts, NaN where before is 0."""
        change, before = self._effects(keys)[statistic, neurons]
        return np.divide(change, before, out=np.full(len(keys), np.nan), where=before != 0)

    def _effects(self, keys: Sequence[str]) -> Ratios:
        ratios: Ratios = {}
        for (statistic, kind), rows in self._by_effect.items():
            mine = rows.loc[list(keys)]
            n_prompts = mine["n_prompts"].to_numpy(dtype=float)
            before = mine["before"].to_numpy()
            ratios[statistic, kind] = (n_prompts * (mine["after"].to_numpy() - before), n_prompts * before)
        return ratios

    @cached_property
    def _by_effect(self) -> "dict[tuple[str, str], pd.DataFrame]":
        """The effects, by statistic (``suppress_own``, ...) and kind of neurons, each by key."""
        columns = [self.effects[name] for name in ("factor", "facts", "neurons")]
        cells = dict.fromkeys(zip(*columns, strict=True))
        by_cell = self.effects.set_index(["factor", "facts", "neurons", "key"]).sort_index()
        return {(f"{PARTS[factor]}_{facts}", kind): by_cell.loc[factor, facts, kind] for factor, facts, kind in cells}


def read_runs(runs: Sequence[StrPath] | Mapping[str, StrPath]) -> list[ComparedRun]:
    """Read the directories of finished runs.

    Args:
        runs: the directories, which give the runs their names; or names for them.

    Raises:
        ArgumentError: fewer than two, one given twice, two of one name, or a directory of something else.
        DataError: a run is not finished (the command that ends it is named), damaged, or of another version.
    """
    paths = [checked_path(path) for path in (runs.values() if isinstance(runs, Mapping) else runs)]
    names_of = runs if isinstance(runs, Mapping) else [path.resolve().name for path in paths]
    named = list(zip(names_of, paths, strict=True))
    if len(named) < 2:
        raise ArgumentError(f"Got {len(named)} run; expected at least two run directories to compare.")
    seen: dict[Path, str] = {}
    names: dict[str, Path] = {}
    for name, path in named:
        place = path.resolve()
        if place in seen:
            raise ArgumentError(f"{path} is named twice ({seen[place]} and {name}); expected different runs.")
        if name in names:
            raise ArgumentError(f"{names[name]} and {path} are both called {name}; name them, as in a={path}.")
        seen[place], names[name] = name, path
    return _tagged(_of_one_version([_read(name, path) for name, path in named]))


def _read(name: str, path: Path) -> ComparedRun:
    if not (path / PROVENANCE).exists() and (inner := sorted(str(one.parent) for one in path.glob(f"**/{PROVENANCE}"))):
        raise ArgumentError(f"{path} is no run directory, but holds some: name those, such as {' '.join(inner[:3])}.")
    run = RunRecords.read(path)
    if "neurons" in run.config:
        raise DataError(f"{path} sums up neurons found by others, without a model; expected a run on a model.")
    if lacking := run.lacking():
        raise DataError(
            f"{path} does not say what it was made from ({', '.join(lacking)} in {PROVENANCE}): it was made by another "
            f"version of kn_lens. '{run.command()} --force' makes it anew."
        )
    records = {stage.name: _records(run, stage) for stage in READ}
    _check_facts(run, records)
    return ComparedRun(
        name=name,
        path=path,
        config=run.config,
        provenance=run.provenance,
        tags={},
        facts=records["facts"].set_index("key"),
        answers=records["answers"].set_index("key"),
        neurons=_sets(records["neurons"]),
        effects=records["effects"],
    )


def _records(run: RunRecords, stage: Stage) -> "pd.DataFrame":
    """Return the records of a stage, if they are all there and of this version."""
    schema, table, _ = READ[stage]
    records = run.records(stage.name)
    for version in {*run.versions(stage.name).values()} - {stage.version}:
        told = "an unknown version" if version is None else f"version {version}"
        raise DataError(
            f"{run.path}: the records of stage {stage.name} are of {told}; "
            f"this version of kn_lens writes version {stage.version}. '{run.command()} --force' makes them anew."
        )
    if records is not None and list(records) != schema.names:
        raise DataError(
            f"{run.path}: the records of stage {stage.name} have the columns {', '.join(records)}; this version of "
            f"kn_lens writes {', '.join(schema.names)}. '{run.command()} --force' makes them anew."
        )
    # The table is taken away when settings change, and comes back when all records are those of today.
    is_summed_up = (run.path / "tables" / f"{table}.csv").is_file()
    if records is None or not is_summed_up or not _is_complete(run, stage, records):
        last = (answers.STAGE.name, modulation.EFFECTS.name)
        raise DataError(f"{run.path} is not finished: stage {stage.name} is missing. '{run.command(*last)}' makes it.")
    return records


def _is_complete(run: RunRecords, stage: Stage, records: "pd.DataFrame") -> bool:
    """Return whether there are records of all relations, and of all parts of the stage."""
    if stage is asking.STAGE:
        return records["relation"].nunique() == run.provenance["n_relations"]
    relations = run.relations()
    if stage is modulation.EFFECTS:
        return set(zip(records["relation"], records["factor"], strict=True)) >= set(product(relations, PARTS))
    return set(records["relation"]) >= set(relations)


def _check_facts(run: RunRecords, records: "Mapping[str, pd.DataFrame]") -> None:
    """Raise unless all stages tell of the same facts, each once: files of two runs can lie in one directory.

    Raises:
        DataError: they do not, or the neurons are not those of a model with so many layers.
    """
    anew = f"'{run.command()} --force' makes them anew."
    facts = records[asking.STAGE.name]
    asked = sorted(facts.loc[facts["asked"], "key"])
    for stage, (*_, columns) in READ.items():
        rows = records[stage.name]
        rows = rows.loc[rows["asked"]] if stage is asking.STAGE else rows
        groups = [group for _, group in rows.groupby(list(columns))] if columns else [rows]
        if not facts["key"].is_unique or any(sorted(group["key"]) != asked for group in groups):
            raise DataError(
                f"{run.path}: the records of stage {stage.name} are not of all facts that were asked, each once; some "
                f"are of another run. {anew}"
            )
    n_layers = run.provenance["model"]["n_layers"]
    highest = records[refining.STAGE.name]["layer"].explode().max()
    if highest >= n_layers:
        raise DataError(
            f"{run.path} has neurons in layer {highest} of a model with {n_layers} layers; {PROVENANCE} or some "
            f"records are of another run. {anew}"
        )


def _sets(records: "pd.DataFrame") -> dict[str, dict[str, NeuronSet]]:
    sets: dict[str, dict[str, NeuronSet]] = {}
    columns = (records[name] for name in ("neurons", "key", "layer", "index"))
    for kind, key, layers, indices in zip(*columns, strict=True):
        sets.setdefault(kind, {})[key] = NeuronSet(zip(layers, indices, strict=True))
    return sets


def _of_one_version(runs: list[ComparedRun]) -> list[ComparedRun]:
    versions = {run.name: run.provenance["made_from"]["versions"]["kn_lens"] for run in runs}
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{name}: {version}" for name, version in versions.items())
        raise DataError(f"The runs were made by different versions of kn_lens ({told}), which may compute differently;"
                        " make them with one: 'kn-lens reproduce --force' takes up a run of another.")  # fmt: skip
    return runs


def _tagged(runs: list[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with the tags of their provenance, with what the models are, and with settings that differ."""
    names = {name for stage in with_needs(READ) for name in stage.settings}
    differing = sorted(name for name in names if len({repr(run.config.get(name)) for run in runs}) > 1)
    tagged = []
    for run in runs:
        model = run.provenance["model"]
        settings = {
            "draw_seed" if name == "seed" else name: _plain(run.config.get(name)) for name in differing
        }  # the seed of a model's training is another
        of_model = {"kind": model["kind"], "size": f"{model['n_layers']}x{model['d_mlp']}"}
        tagged.append(replace(run, tags={**of_model, **settings, **run.provenance.get("tags", {})}))
    return tagged


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, (str, int, float)) else "none" if value is None else str(value)


def _is_most_frequent(facts: "pd.DataFrame") -> np.ndarray:
    """Return which facts have the most frequent object of their relation, by prompts; the first of several such."""
    counts: dict[str, Counter[str]] = {}
    columns = (facts[name] for name in ("relation", "object", "n_prompts"))
    for relation, name, n_prompts in zip(*columns, strict=True):
        counts.setdefault(relation, Counter())[name] += n_prompts
    most = {relation: counter.most_common(1)[0][0] for relation, counter in counts.items()}
    return (facts["object"] == facts["relation"].map(most)).to_numpy()
