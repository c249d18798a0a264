"""The context of a run: the model, the facts, the settings and the records that all of its stages share.

The prompts of one relation are in memory at a time.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kn_lens._core.names import StartName
from kn_lens._core.notation import keys_in_columns
from kn_lens.attribution import MeanStart, Start
from kn_lens.errors import NoPromptError
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import HookedModel, Host, host_of
from kn_lens.neurons import NeuronSet
from kn_lens.prompts import PromptBatch, make_prompts
from kn_lens.runs.data import RunData, digest_of_facts, with_identifiers
from kn_lens.runs.directory import ALL, FORMER_DEFAULTS, RunDirectory, Shard, digest_of_json, open_run
from kn_lens.runs.provenance import machine, model_identity, model_size, versions
from kn_lens.runs.reader import read_records
from kn_lens.runs.settings import Settings
from kn_lens.runs.stage import Stage

if TYPE_CHECKING:
    import pandas as pd

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """What all stages of a run share.

    Attributes:
        run: the run directory.
        host: the model.
        source: all facts of the data; controls draw facts of other relations from it.
        facts: the chosen facts.
        held_out: facts in wordings that are never attributed, only queried after an edit.
        settings: see ``Settings``.
        made_from: identity of model and libraries; part of the inputs of every shard.
        norm_after_mlp: whether a norm follows ``W_out``, for contexts whose host has no model at hand.
        memory_budget: bytes that passes may take; see ``attribute``. Records do not depend on it.
    """

    run: RunDirectory
    host: Host
    source: FactSet
    facts: FactSet
    held_out: FactSet
    settings: Settings
    made_from: Mapping[str, Any]
    norm_after_mlp: bool = False
    memory_budget: float | None = None
    _facts_by_relation: dict[str, tuple[Fact, ...]] = field(default_factory=dict, init=False, repr=False)
    _prompts: dict[str, PromptBatch] = field(default_factory=dict, init=False, repr=False)
    _fact_records: "dict[str, tuple[str, pd.DataFrame]]" = field(default_factory=dict, init=False, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _n_rows: dict[tuple[Fact, ...], int] = field(default_factory=dict, init=False, repr=False)
    _n_neurons: dict[tuple[str, str], tuple[str, dict[Fact, int]]] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Group the facts by relation."""
        for fact in self.facts:
            group = self._facts_by_relation.get(fact.relation, ())
            self._facts_by_relation[fact.relation] = (*group, fact)

    # --- facts ------------------------------------------------------------------------------------

    def relations(self) -> list[str]:
        """Return the relations with facts to query; all relations until the stage ``facts`` is complete."""
        relations = []
        for relation in self.facts.relations:
            if self.run.manifest("facts", Shard(relation)) is None:
                return list(self.facts.relations)
            if self.fact_records(relation)["queried"].to_numpy().any():
                relations.append(relation)
        return relations

    def fact_records(self, relation: str) -> "pd.DataFrame":
        """Return the records of the stage ``facts``: which facts of a relation are queried, in how many prompts."""
        manifest = self.run.manifest("facts", Shard(relation))
        digest = "" if manifest is None else manifest["sha256"]
        cached_digest, records = self._fact_records.get(relation, (None, None))
        if records is None or cached_digest != digest:
            records = self.records("facts", Shard(relation))
            self._fact_records[relation] = digest, records
        return records

    def queried_facts(self, relation: str) -> list[Fact]:
        """Return the facts of a relation that the model is queried for: those with enough prompts."""
        records = self.fact_records(relation)
        keys = set(records["key"][records["queried"]])
        return [fact for fact in self._facts_by_relation[relation] if fact.key in keys]

    def sample_facts(self, relation: str, n: int, purpose: str) -> list[Fact]:
        """Return at most ``n`` queried facts of a relation, in their order.

        Args:
            relation: whose facts.
            n: how many; all of them where there are no more.
            purpose: names the random generator, so that draws for different purposes are independent.
        """
        return sample_in_order(self.queried_facts(relation), n, self.generator(purpose, relation))

    def sample_other_facts(self, relation: str, n: int, *names: str) -> list[Fact]:
        """Return ``n`` facts of other relations of the source, in its order, drawn with the generator of ``names``.

        Some of them may have no prompt that the model can be queried with. Where none has, more facts are drawn. There
        is none where the source has one relation.
        """
        candidates = [fact for fact in self.source if fact.relation != relation and fact.templates]
        while True:
            facts = sample_in_order(candidates, n, self.generator(*names))
            if n >= len(candidates) or any(map(self._has_prompts, facts)):
                return facts
            n *= 10

    def neurons(self, kind: str, relation: str) -> dict[Fact, NeuronSet]:
        """Return the neurons of a relation's queried facts, of one kind of the stage ``neurons``."""
        sets_by_key = neuron_sets(self.records("neurons", Shard(relation)), kind)
        sets = {}
        for fact in self._facts_by_relation[relation]:
            if fact.key in sets_by_key:
                sets[fact] = sets_by_key[fact.key]
        return sets

    def share_with_neurons(self, relation: str) -> float:
        """Return the share of a relation's queried facts that have found neurons; 1 while that is not known."""
        sizes = self.n_neurons("found", relation)
        return 1.0 if sizes is None else sum(map(bool, sizes.values())) / max(1, len(sizes))

    def n_neurons(self, kind: str, relation: str) -> dict[Fact, int] | None:
        """Return how many neurons of a kind each queried fact of a relation has; None while that is not known.

        The records are read once: the durations of all stages are estimated from these numbers again and again.
        """
        manifest = self.run.manifest("neurons", Shard(relation))
        if manifest is None:
            return None
        digest, sizes = self._n_neurons.get((kind, relation), ("", {}))
        if digest != manifest["sha256"]:
            sizes = {fact: len(neurons) for fact, neurons in self.neurons(kind, relation).items()}
            self._n_neurons[kind, relation] = manifest["sha256"], sizes
        return sizes

    # --- prompts ----------------------------------------------------------------------------------

    def prompts(self, relation: str) -> PromptBatch:
        """Return the prompts of a relation's queried facts; the last relation's are cached."""
        if relation not in self._prompts:
            self._prompts.clear()
            self._prompts[relation] = self.make_prompts(self.queried_facts(relation))
        return self._prompts[relation]

    def make_prompts(self, facts: Iterable[Fact]) -> PromptBatch:
        """Return prompts of any facts, without the answers that the vocabulary cannot spell.

        Raises:
            NoPromptError: no prompt is left.
        """
        return make_prompts(self.host, FactSet(facts), unknown_answers="leave_out")

    def has_other_relations(self, prompts: PromptBatch) -> bool:
        """Return whether prompts are of more than one relation, as the controls on facts of other relations need."""
        return len({fact.relation for fact, n in prompts.prompts_per_fact().items() if n}) > 1

    def _has_prompts(self, fact: Fact) -> bool:
        if self.host.tokenizer is None:  # see n_rows_of
            return bool(fact.templates)
        try:
            return bool(self.make_prompts([fact]))
        except NoPromptError:
            return False

    def n_rows(self, relation: str) -> int:
        """Return the number of rows in the prompts of a relation."""
        records = self.fact_records(relation)
        n_rows = records["n_rows"].to_numpy()
        return int(n_rows[records["queried"].to_numpy()].sum())

    def n_rows_of(self, facts: Sequence[Fact]) -> int:
        """Return the number of rows in the prompts of any facts; the prompts are built once to count them.

        Without a tokenizer, as where workers have the model, it is the number of templates: the rows only tell how long
        a stage takes.
        """
        facts = tuple(facts)
        if self.host.tokenizer is None:
            return sum(len(fact.templates) for fact in facts)
        if facts not in self._n_rows:
            n_rows = 0
            if facts:
                with suppress(NoPromptError):
                    n_rows = self.make_prompts(facts).n_rows
            self._n_rows[facts] = n_rows
        return self._n_rows[facts]

    # --- random numbers ---------------------------------------------------------------------------

    def generator(self, *names: str) -> np.random.Generator:
        """Return the random generator that belongs to these names, independent of all other draws."""
        return np.random.default_rng(self.seeds(*names))

    def seeds(self, *names: str) -> list[int]:
        """Return the seeds of ``generator(*names)``."""
        seeds = [self.settings.seed]
        for name in names:
            seeds.append(zlib.crc32(name.encode()))
        return seeds

    def kept(self, name: str, compute: Callable[[], Result]) -> Result:
        """Return what ``compute`` returns, computed once for all shards that this process works on.

        Args:
            name: names the result; those of one name have one value in a run.
            compute: depends on the model, the settings and the source alone, on no shard.
        """
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    # --- records ----------------------------------------------------------------------------------

    def records(self, stage: str, shard: Shard) -> "pd.DataFrame":
        """Return the records of one shard."""
        return read_records(self.run.record_path(stage, shard), stage)

    def all_records(self, stage: Stage) -> "pd.DataFrame":
        """Return the records of all shards of a stage, in their order."""
        import pandas as pd

        parts = [self.records(stage.name, shard) for shard in stage.shards(self)]
        return pd.concat(parts, ignore_index=True)

    def needed_records(self, stage: Stage, shard: Shard) -> list[tuple[str, Shard]]:
        """Return the (stage, shard) pairs whose records a shard reads."""
        needed = []
        for other_stage in stage.needs:
            for other_shard in other_stage.shards(self):
                if shard.relation in (ALL, other_shard.relation):
                    needed.append((other_stage.name, other_shard))
        return needed

    def start_name(self, relation: str) -> StartName:
        """Return where the paths of a relation's attributions start."""
        start = self.settings.start
        if start != "auto":
            return start
        if not self.norm_after_mlp or self.settings.preset != Settings.preset:
            return "zero"
        subjects = {fact.subject for fact in self.queried_facts(relation)}
        return "mean" if len(subjects) > 1 else "zero"

    def start(self, relation: str) -> Start:
        """Return the argument ``start`` of attributions of a relation, of all its prompts or of some."""
        if self.start_name(relation) == "zero":
            return "zero"
        return MeanStart(self.prompts(relation))

    def inputs(self, stage: Stage, shard: Shard) -> str | None:
        """Return the digest of all inputs of a shard; None while records that it needs are missing."""
        records: dict[str, str] = {}
        for other_stage, other_shard in self.needed_records(stage, shard):
            manifest = self.run.manifest(other_stage, other_shard)
            if manifest is None:
                return None
            records[f"{other_stage}/{other_shard.name}"] = manifest["sha256"]
        values = self.settings.as_dict()
        if "start" in stage.settings:
            start = self.start_name(shard.relation)
            # Paths started at zero before this was a setting.
            values["start"] = FORMER_DEFAULTS["start"] if start == "zero" else start
        settings = {}
        for name in stage.settings:
            # A setting at its former default is left out, so that records from before it existed stay current.
            if name not in FORMER_DEFAULTS or values[name] != FORMER_DEFAULTS[name]:
                settings[name] = values[name]
        return digest_of_json(
            {
                "stage": [stage.name, stage.version, shard.name],
                "settings": settings,
                "made_from": self.made_from,
                "facts": self._facts_digest(shard.relation),
                "source": self._source_digest() if stage.across else None,
                "records": records,
            }
        )

    def is_current(self, stage: Stage, shard: Shard) -> bool:
        """Return whether the records of a shard exist and were made from its inputs."""
        inputs = self.inputs(stage, shard)
        return inputs is not None and self.run.is_current(stage.name, shard, inputs, stage.version)

    def _facts_digest(self, relation: str) -> str:
        """Return the digest of the chosen facts of a relation; of all chosen facts for ``ALL``."""
        if relation not in self._digests:
            facts = self.facts if relation == ALL else self._facts_by_relation[relation]
            self._digests[relation] = digest_of_facts(facts)
        return self._digests[relation]

    def _source_digest(self) -> str:
        """Return the digest of all facts that a stage can draw from."""
        if "" not in self._digests:  # no relation has this name
            self._digests[""] = digest_of_facts((*self.source, *self.held_out))
        return self._digests[""]


@contextmanager
def open_context(
    model: HookedModel | Host,
    facts: FactSet,
    path: str | os.PathLike[str],
    settings: Settings,
    *,
    held_out: FactSet | None = None,
    names: Mapping[str, str | None] | None = None,
    memory_budget: float | None = None,
    force: bool = False,
) -> Iterator[RunContext]:
    """Open a run directory for a model, new or to be resumed.

    Args:
        model: a TransformerLens model in evaluation mode.
        facts: all facts of the data; ``settings`` choose from them.
        path: the run directory.
        settings: see ``Settings``.
        held_out: the same facts in wordings that are never attributed, in place of the setting ``held_out``.
        names: how the user names and reads the model and the facts, for ``config.toml``.
        memory_budget: bytes that passes may take; see ``attribute``.
        force: resume a directory of other settings; see ``open_run``.

    Raises:
        ArgumentError: an unknown relation, or a directory that holds something else.
        DataError: a relation whose name is too long for a file, or as ``open_run``.
    """
    settings = with_identifiers(settings, facts)
    data = RunData.of(facts, settings, held_out)
    context, config, provenance = prepare_context(model, data, Path(path), settings, names or {}, memory_budget)
    with open_run(path, config, provenance, force=force) as run:
        yield replace(context, run=run)


def prepare_context(
    model: HookedModel | Host,
    data: RunData,
    path: Path,
    settings: Settings,
    names: Mapping[str, str | None],
    memory_budget: float | None,
    *,
    identify: bool = True,
) -> tuple[RunContext, dict[str, Any], dict[str, Any]]:
    """Return the context, the configuration and the provenance of a run, without touching its directory.

    Args:
        model: a TransformerLens model in evaluation mode.
        data: the facts.
        path: the run directory.
        settings: see ``Settings``.
        names: see ``open_context``.
        memory_budget: see ``open_context``.
        identify: whether to compute the digest of the weights; not needed where there are no records yet.
    """
    host = host_of(model)
    if host.side == "encoder":
        settings = replace(settings, side="encoder")
    elif settings.side == "encoder":
        host = host_of(host, side="encoder")
    made_from = {"versions": versions(), "model": model_identity(host) if identify else {}}
    provenance = {
        "made_from": {**made_from, "data": data.digests()},
        "model": model_size(host),
        "n_facts": len(data.facts),
        "n_relations": len(data.facts.relations),
        **machine(host),
    }
    context = RunContext(
        run=RunDirectory(path),
        host=host,
        source=data.source,
        facts=data.facts,
        held_out=data.held_out,
        settings=settings,
        made_from=made_from,
        norm_after_mlp=host.norm_after_mlp,
        memory_budget=memory_budget,
    )
    return context, {**names, **settings.as_dict()}, provenance


def sample_in_order(facts: Sequence[Fact], n: int, generator: np.random.Generator) -> list[Fact]:
    """Return at most ``n`` facts, drawn at random, in the order that they have."""
    size = min(n, len(facts))
    chosen = generator.choice(len(facts), size=size, replace=False)
    return [facts[index] for index in sorted(chosen.tolist())]


def neuron_sets(records: "pd.DataFrame", kind: str) -> dict[str, NeuronSet]:
    """Return the neurons of one kind in records of the stage ``neurons``, by the key of their fact."""
    records = records.loc[records["neuron_set"] == kind]
    sets = {}
    for key, *columns in zip(records["key"], records["layer"], records["expert"], records["index"], strict=True):
        sets[key] = NeuronSet(keys_in_columns(*columns))
    return sets
