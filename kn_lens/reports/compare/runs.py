"""Finished runs, read and checked for a comparison fact by fact."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kn_lens._core.notation import keys_in_columns
from kn_lens.errors import ArgumentError, DataError
from kn_lens.interventions import is_known
from kn_lens.neurons import NeuronSet
from kn_lens.reports.compare.requested import REQUESTED, FactRatios, fact_ratios
from kn_lens.runs.directory import PROVENANCE
from kn_lens.runs.execute import with_needs
from kn_lens.runs.reader import RunRecords, checked_path
from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.answers import ANSWERS, ANSWERS_SCHEMA
from kn_lens.runs.stages.facts import FACTS, FACTS_SCHEMA
from kn_lens.runs.stages.interventions import EFFECTS, EFFECTS_SCHEMA
from kn_lens.runs.stages.neurons import NEURONS, NEURONS_SCHEMA

if TYPE_CHECKING:
    import pandas as pd

StrPath = str | os.PathLike[str]
Ratios = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""Numerators and denominators of each fact, by statistic and neuron set."""

READ = {
    FACTS: (FACTS_SCHEMA, "coverage", ()),
    ANSWERS: (ANSWERS_SCHEMA, "answers", ()),
    NEURONS: (NEURONS_SCHEMA, "table2", ("neuron_set",)),
    EFFECTS: (EFFECTS_SCHEMA, "figures4_5", ("factor", "scope", "neuron_set")),
}
"""The stages that a comparison reads: the schema of their records, a table that exists once they are complete, and the
columns of which each combination has one row for each queried fact."""
INTERVENTIONS = {0.0: "suppress", 2.0: "amplify"}
"""Names of the factors of the stage ``effects`` in the statistics."""
DIRECTORIES_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedRun:
    """The records of a finished run.

    Attributes:
        name: name of the run in the comparison.
        path: directory of the run.
        config: settings of the run.
        provenance: model, data and versions of the run.
        tags: properties of model and settings that distinguish the run from others.
        facts: records of the stage ``facts``, indexed by key.
        answers: records of the stage ``answers``, indexed by key.
        neurons: records of the stage ``neurons``: ``{neuron set: {key: NeuronSet}}``.
        effects: records of the stage ``effects``.
        requested: statistics of the facts that stages on request measured, by the stage's name; of those that the run
            has complete.
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
    requested: Mapping[str, FactRatios] = field(repr=False)

    @property
    def n_layers(self) -> int:
        """Number of layers of the model."""
        return self.provenance["model"]["n_layers"]

    @cached_property
    def queried(self) -> "pd.Index":
        """Keys of the facts that the model was queried with."""
        return self.facts.index[cast("pd.Series", self.facts["queried"])]

    @cached_property
    def known(self) -> "pd.Index":
        """Keys of the facts that the model knows: at least half of its answers to their prompts are correct."""
        return self.answers.index[is_known(self.answers["n_right"], self.answers["n_prompts"])]

    def depths(self, keys: Sequence[str]) -> np.ndarray:
        """Return the mean depth of each fact's neurons, 0 to 1; NaN without neurons. Layer l of L is (l + 1/2) / L."""
        found = self.neurons["found"]
        mean_layers = np.full(len(keys), np.nan)
        for i, key in enumerate(keys):
            counts = found[key].layer_counts(self.n_layers)
            if found[key]:
                mean_layers[i] = np.average(range(self.n_layers), weights=counts)
        return (mean_layers + 0.5) / self.n_layers

    def cumulative(self, keys: Sequence[str], depths: np.ndarray) -> np.ndarray:
        """Return the share of each fact's neurons up to some depths, ``[fact, depth]``.

        The neurons of layer l of L are spread evenly over the depths from l/L to (l+1)/L, since their depth within
        the layer is undefined. All facts must have neurons.
        """
        edges = np.linspace(0, 1, self.n_layers + 1)
        result = np.empty((len(keys), len(depths)))
        for i, key in enumerate(keys):
            counts = np.array(self.neurons["found"][key].layer_counts(self.n_layers), dtype=float)
            shares = np.cumsum([0.0, *counts]) / counts.sum()
            result[i] = np.interp(depths, edges, shares)
        return result

    def answer_ratios(self, keys: Sequence[str]) -> Ratios:
        """Return numerator and denominator of the statistics of answers, for each fact.

        The statistic of a relation is the sum of the numerators over the sum of the denominators.
        """
        rows = self.answers.loc[list(keys)]
        n_prompts = rows["n_prompts"].to_numpy(dtype=float)
        ones = np.ones(len(rows))
        majority = _has_majority_object(rows).astype(float)
        return {
            ("accuracy", ""): (rows["n_right"].to_numpy(dtype=float), n_prompts),
            ("accuracy", "majority"): (majority * n_prompts, n_prompts),
            ("nll", ""): (rows["nll"].to_numpy() * n_prompts, n_prompts),
            ("known", ""): (rows.index.isin(self.known).astype(float), ones),
            ("known", "majority"): (majority, ones),
        }

    def neuron_ratios(self, keys: Sequence[str]) -> Ratios:
        """Return the same for the numbers of neurons and for their effects."""
        ratios: Ratios = {}
        for neuron_set, sets in self.neurons.items():
            sizes = np.array([len(sets[key]) for key in keys], dtype=float)
            ratios["neurons_per_fact", neuron_set] = (sizes, np.ones(len(keys)))
        return ratios | self._effect_ratios(keys)

    def change_ratios(
        self,
        keys: Sequence[str],
        statistic: str,
        neuron_set: str,
    ) -> np.ndarray:
        """Return ``(after - before) / before`` of each fact; NaN where ``before`` is 0."""
        change, before = self._effect_ratios(keys)[statistic, neuron_set]
        return np.divide(change, before, out=np.full(len(keys), np.nan), where=before != 0)

    def _effect_ratios(self, keys: Sequence[str]) -> Ratios:
        ratios: Ratios = {}
        for name, effects in self._effects_by_statistic.items():
            rows = effects.loc[list(keys)]
            n_prompts = rows["n_prompts"].to_numpy(dtype=float)
            before = rows["before"].to_numpy()
            after = rows["after"].to_numpy()
            ratios[name] = (n_prompts * (after - before), n_prompts * before)
        return ratios

    @cached_property
    def _effects_by_statistic(self) -> "dict[tuple[str, str], pd.DataFrame]":
        """The effects by statistic (``suppress_own``, ...) and neuron set, each indexed by key."""
        cell_columns = ["factor", "scope", "neuron_set"]
        cells = self.effects.loc[:, cell_columns].drop_duplicates().itertuples(index=False)
        by_cell = self.effects.set_index([*cell_columns, "key"]).sort_index()
        result = {}
        for factor, scope, neuron_set in cells:
            statistic = f"{INTERVENTIONS[factor]}_{scope}"
            result[statistic, neuron_set] = by_cell.loc[factor, scope, neuron_set]
        return result


def read_runs(runs: Sequence[StrPath] | Mapping[str, StrPath]) -> list[ComparedRun]:
    """Read the directories of finished runs.

    Args:
        runs: directories, whose names become those of the runs; or directories by name.

    Raises:
        ArgumentError: There are fewer than two runs, one is given twice, two have the same name, or a directory is
            not that of a run.
        DataError: A run is not finished (the message gives the command that finishes it), is damaged, or has another
            version.
    """
    named: list[tuple[str, Path]] = []
    if isinstance(runs, Mapping):
        for name, path in runs.items():
            named.append((name, checked_path(path)))
    else:
        for path in map(checked_path, runs):
            named.append((path.resolve().name, path))
    if len(named) < 2:
        raise ArgumentError(f"Got {len(named)} run; expected at least two run directories to compare.")
    name_of: dict[Path, str] = {}
    path_of: dict[str, Path] = {}
    for name, path in named:
        resolved = path.resolve()
        if resolved in name_of:
            raise ArgumentError(f"{path} is given twice ({name_of[resolved]} and {name}); expected different runs.")
        if name in path_of:
            raise ArgumentError(
                f"{path_of[name]} and {path} have the same name, {name}. Give them names, as in a={path}."
            )
        name_of[resolved] = name
        path_of[name] = path
    compared = [_read_run(name, path) for name, path in named]
    _check_same_version(compared)
    return _tagged(compared)


def _read_run(name: str, path: Path) -> ComparedRun:
    if not (path / PROVENANCE).exists():
        inner = sorted(path.glob(f"**/{PROVENANCE}"))
        if inner:
            examples = " ".join(str(file.parent) for file in inner[:DIRECTORIES_SHOWN])
            raise ArgumentError(f"{path} is not a run directory, but contains some. Name those, such as {examples}.")
    run = RunRecords.read(path)
    if "neurons" in run.config:
        raise DataError(f"{path} summarises neurons found elsewhere, without a model; expected a run on a model.")
    missing = run.lacking()
    if missing:
        raise DataError(
            f"{path} does not record its origin ({', '.join(missing)} in {PROVENANCE}), as it was "
            f"written by another version of kn_lens. '{run.command()} --force' computes it again."
        )
    records = {stage.name: _read_stage(run, stage) for stage in READ}
    _check_same_facts(run, records)
    requested = {}
    for stage in REQUESTED:
        rows = _read_requested(run, stage, records[FACTS.name])
        if rows is not None:
            requested[stage.name] = fact_ratios(stage, rows, run.provenance["model"]["n_layers"])
    return ComparedRun(
        name=name,
        path=path,
        config=run.config,
        provenance=run.provenance,
        tags={},
        facts=records["facts"].set_index("key"),
        answers=records["answers"].set_index("key"),
        neurons=_neuron_sets(records["neurons"]),
        effects=records["effects"],
        requested=requested,
    )


def _read_stage(run: RunRecords, stage: Stage) -> "pd.DataFrame":
    """Return the records of a stage, if they are complete and have the present version."""
    schema, table, _ = READ[stage]
    records = _records_of_schema(run, stage, schema.names)
    # A change of settings deletes the table. It is written again once all records have the present settings.
    has_table = (run.path / "tables" / f"{table}.csv").is_file()
    if records is None or not has_table or not _is_complete(run, stage, records):
        command = run.command(ANSWERS.name, EFFECTS.name)
        raise DataError(f"{run.path} is not finished: stage {stage.name} is missing. '{command}' computes it.")
    return records


def _read_requested(run: RunRecords, stage: Stage, facts: "pd.DataFrame") -> "pd.DataFrame | None":
    """Return the records of a stage on request; None unless they are complete.

    Raises:
        DataError: they have another version, or facts that the run did not query, or one twice.
    """
    schema, table, columns = REQUESTED[stage]
    if not (run.path / "tables" / f"{table}.csv").is_file():
        return None
    records = _records_of_schema(run, stage, schema.names)
    if records is None or not run.is_complete(stage.name, run.relations()):
        return None
    is_known = records["key"].isin(facts.loc[facts["queried"], "key"])
    if not is_known.all() or records.duplicated(["key", *columns]).any():
        raise DataError(
            f"{run.path}: the records of stage {stage.name} have facts that the run did not query, or one twice; some "
            f"belong to another run. '{run.command()} --force' computes them again."
        )
    return records


def _records_of_schema(run: RunRecords, stage: Stage, columns: Sequence[str]) -> "pd.DataFrame | None":
    """Return the records of a stage, of the present version; None where there are none.

    Raises:
        DataError: they have another version.
    """
    recompute = f"'{run.command()} --force' computes them again."
    records = run.records(stage.name)
    for version in {*run.versions(stage.name).values()} - {stage.version}:
        found = "an unknown version" if version is None else f"version {version}"
        raise DataError(
            f"{run.path}: the records of stage {stage.name} have {found}; this version of kn_lens "
            f"writes version {stage.version}. {recompute}"
        )
    # The reader gives every table of neurons a column of experts.
    if records is not None and list(records.drop(columns={"expert"} - {*columns}, errors="ignore")) != list(columns):
        raise DataError(
            f"{run.path}: the records of stage {stage.name} have the columns {', '.join(records)}; "
            f"this version of kn_lens writes {', '.join(columns)}. {recompute}"
        )
    return records


def _is_complete(run: RunRecords, stage: Stage, records: "pd.DataFrame") -> bool:
    """Return whether there are records of all relations, and of all factors of the stage."""
    if stage is FACTS:
        return records["relation"].nunique() == run.provenance["n_relations"]
    relations = run.relations()
    if stage is EFFECTS:
        found = set(zip(records["relation"], records["factor"], strict=True))
        return found >= set(product(relations, INTERVENTIONS))
    return set(records["relation"]) >= set(relations)


def _check_same_facts(run: RunRecords, records: "Mapping[str, pd.DataFrame]") -> None:
    """Check that all stages have the same facts, each once: one directory can contain files of two runs.

    Raises:
        DataError: They do not, or a neuron lies above the last layer of the model.
    """
    recompute = f"'{run.command()} --force' computes them again."
    facts = records[FACTS.name]
    queried = sorted(facts.loc[facts["queried"], "key"])
    for stage, (*_, columns) in READ.items():
        rows = records[stage.name]
        if stage is FACTS:
            rows = rows.loc[rows["queried"]]
        keys_by_group = [rows["key"]]
        if columns:
            keys_by_group = rows.groupby(list(columns))["key"].apply(list)
        is_complete = facts["key"].is_unique
        for keys in keys_by_group:
            is_complete &= sorted(keys) == queried
        if not is_complete:
            raise DataError(
                f"{run.path}: the records of stage {stage.name} do not contain each queried fact "
                f"exactly once; some belong to another run. {recompute}"
            )
    n_layers = run.provenance["model"]["n_layers"]
    layers = cast("pd.Series", records[NEURONS.name]["layer"])
    highest = layers.explode().max()
    if highest >= n_layers:
        raise DataError(
            f"{run.path} has neurons in layer {highest} of a model with {n_layers} layers; "
            f"{PROVENANCE} or some records belong to another run. {recompute}"
        )


def _neuron_sets(records: "pd.DataFrame") -> dict[str, dict[str, NeuronSet]]:
    result: dict[str, dict[str, NeuronSet]] = {}
    for row in records.to_dict("records"):
        neurons = NeuronSet(keys_in_columns(row["layer"], row["expert"], row["index"]))
        result.setdefault(row["neuron_set"], {})[row["key"]] = neurons
    return result


def _check_same_version(runs: Sequence[ComparedRun]) -> None:
    versions = {run.name: run.provenance["made_from"]["versions"]["kn_lens"] for run in runs}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name}: {version}" for name, version in versions.items())
        raise DataError(
            f"The runs were computed by different versions of kn_lens ({listed}), whose results "
            "may differ. Compute them with one version: 'kn-lens reproduce --force' accepts a run "
            "of another."
        )


def _tagged(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with tags: kind and size of the model, the settings that differ, and those of the provenance."""
    names: set[str] = set()
    for stage in with_needs(READ):
        names.update(stage.settings)
    differing = []
    for name in sorted(names):
        values = {repr(run.config.get(name)) for run in runs}
        if len(values) > 1:
            differing.append(name)
    tagged = []
    for run in runs:
        model = run.provenance["model"]
        tags = {"kind": model["kind"], "size": f"{model['n_layers']}x{model['d_mlp']}"}
        for name in differing:
            tag = "draw_seed" if name == "seed" else name  # the tag "seed" is that of a model's training
            tags[tag] = _tag_value(run.config.get(name))
        tags |= run.provenance.get("tags", {})
        tagged.append(replace(run, tags=tags))
    return tagged


def _tag_value(value: Any) -> str | int | float:
    if value is None:
        return "none"
    return value if isinstance(value, (str, int, float)) else str(value)


def _has_majority_object(rows: "pd.DataFrame") -> np.ndarray:
    """Return whether each fact has the most frequent object of its relation, by prompts; the first of several."""
    counts: dict[str, Counter[str]] = {}
    for row in rows.to_dict("records"):
        counts.setdefault(row["relation"], Counter())[row["object"]] += row["n_prompts"]
    majority = {}
    for relation, counter in counts.items():
        ((majority[relation], _),) = counter.most_common(1)
    return (rows["object"] == cast("pd.Series", rows["relation"]).map(majority)).to_numpy()
