"""What a run works on, and what its stages are.

A *stage* makes one kind of records, in *shards*: one for each relation, or several where one would take long. A shard
is made from facts, settings, the model, and the records of the stages before; their digests are its *inputs*, and as
long as they are what they were, the shard is not made again. The prompts of one relation are in memory at a time.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._budget import give_back_memory
from kn_lens.errors import NoPromptError
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import BEFORE_THERE_WAS_A_CHOICE, RunDirectory, Shard, digest_of_json
from kn_lens.experiments.settings import Settings
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import Host
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch, make_prompts

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""In place of a relation: a shard that is about all of them."""

Tick = Callable[[int, int], None]
"""Called with (done, total), in any unit."""


@dataclass(frozen=True)
class Shown:
    """How a table is shown to people who do not open it.

    Attributes:
        caption: what its values and its control are, in a line.
        measures: of its column ``measure``, in this order; all of them unless given.
    """

    caption: str
    measures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One kind of records, how they are made, and what they are summed up in.

    Attributes:
        name: of the directory of its records.
        title: what it does, for people.
        make: ``make(study, shard, path, tick)`` writes the records of a shard to ``path``, as Parquet.
        tables: ``tables(study)`` returns tables by name, from records alone; run when all shards are there.
        shown: those of them that people see first, by name, and how. They have columns of labels, then ``value`` with
            ``low``, ``high`` and ``n``, and what stands beside them: ``control``, ``paper``.
        needs: the stages whose records it reads: those of its shard's relation, of all relations for ``ALL``.
        settings: the settings that its records depend on.
        across: whether a shard depends on facts of other relations too.
        shards: its shards, from the study; one for each relation with facts to ask for, unless given.
        passes: ``passes(study, shard)``: the passes that a shard takes; the base of all estimates.
        version: to be raised when the same inputs give other records.
    """

    name: str
    title: str
    make: "Callable[[Study, Shard, Path, Tick], None]"
    tables: "Callable[[Study], Mapping[str, pd.DataFrame]]" = lambda study: {}
    shown: Mapping[str, Shown] = field(default_factory=dict)
    needs: "tuple[Stage, ...]" = ()
    settings: tuple[str, ...] = ()
    across: bool = False
    shards: "Callable[[Study], Sequence[Shard]]" = lambda study: [Shard(relation) for relation in study.relations()]
    passes: "Callable[[Study, Shard], Passes]" = lambda study, shard: Passes()
    version: int = 1

    def write(self, study: "Study", shard: Shard, path: Path, tick: Tick) -> None:
        """Make the records of a shard, and give back the memory that it took: the next one is of another size."""
        self.make(study, shard, path, tick)
        give_back_memory()

    def cost(self, study: "Study", shard: Shard) -> float:
        """Return about how many forward passes of a row a shard takes as long as."""
        return self.passes(study, shard).forwards()


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What all stages of a run share.

    Attributes:
        run: where its records are.
        host: the model.
        source: all facts of the data; the other facts of a control are drawn from it.
        facts: those chosen.
        held_out: facts in wordings that are not asked but to see what an edit does in them.
        settings: see ``Settings``.
        made_from: what identifies model and libraries: part of every shard's inputs.
        memory_budget: of passes; see ``attribute``. Results do not depend on it.
    """

    run: RunDirectory
    host: Host
    source: FactSet
    facts: FactSet
    held_out: FactSet
    settings: Settings
    made_from: Mapping[str, Any]
    memory_budget: float | None = None
    _last: dict[str, PromptBatch] = field(default_factory=dict, init=False, repr=False)
    _asked: "dict[str, tuple[str, pd.DataFrame]]" = field(default_factory=dict, init=False, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _of: dict[str, tuple[Fact, ...]] = field(default_factory=dict, init=False, repr=False)
    _n_rows: dict[tuple[Fact, ...], int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for fact in self.facts:
            self._of[fact.relation] = (*self._of.get(fact.relation, ()), fact)

    # --- facts and prompts ------------------------------------------------------------------------

    def relations(self) -> list[str]:
        """Return the relations that have facts to ask for, once the stage ``facts`` has told; before that, all."""
        relations = self.facts.relations
        if not all(self.run.noted("facts", Shard(relation)) for relation in relations):
            return list(relations)
        return [relation for relation in relations if self.asked(relation)["asked"].any()]

    def asked(self, relation: str) -> "pd.DataFrame":
        """Return the records of the stage ``facts``: which facts of a relation are asked, and in how many prompts."""
        noted = self.run.noted("facts", Shard(relation))
        digest = "" if noted is None else noted["sha256"]
        if relation not in self._asked or self._asked[relation][0] != digest:
            self._asked[relation] = digest, self.records("facts", Shard(relation))
        return self._asked[relation][1]

    def asked_facts(self, relation: str) -> list[Fact]:
        """Return the facts of a relation that the model is asked for: those with enough prompts."""
        asked = self.asked(relation)
        keys = set(asked["key"][asked["asked"]])
        return [fact for fact in self._of[relation] if fact.key in keys]

    def some_facts(self, relation: str, n: int, what: str) -> list[Fact]:
        """Return at most ``n`` of the asked facts of a relation, in their order, drawn at random for what is named."""
        facts = self.asked_facts(relation)
        chosen = self.generator(what, relation).choice(len(facts), size=min(len(facts), n), replace=False)
        return [facts[i] for i in sorted(chosen.tolist())]

    def other_facts(self, relation: str, n: int, *names: str) -> list[Fact]:
        """Return ``n`` facts of other relations of the source, in its order, drawn at random for what is named.

        They need not all be such as the model can be asked; where none is, more are drawn.
        """
        rest = [fact for fact in self.source if fact.relation != relation and fact.templates]
        while True:
            chosen = self.generator(*names).choice(len(rest), size=min(n, len(rest)), replace=False)
            drawn = [rest[i] for i in sorted(chosen.tolist())]
            if n >= len(rest) or any(map(self._can_be_asked, drawn)):
                return drawn
            n *= 10

    def _can_be_asked(self, fact: Fact) -> bool:
        try:
            return bool(self.ask([fact]))
        except NoPromptError:
            return False

    def n_rows(self, relation: str) -> int:
        """Return how many rows the prompts of a relation have."""
        asked = self.asked(relation)
        return int(asked["n_rows"][asked["asked"]].sum())

    def n_rows_of(self, facts: Sequence[Fact]) -> int:
        """Return how many rows the prompts of any facts have: they are written for that, once."""
        facts = tuple(facts)
        if facts not in self._n_rows:
            try:
                self._n_rows[facts] = self.ask(facts).n_rows if facts else 0
            except NoPromptError:
                self._n_rows[facts] = 0
        return self._n_rows[facts]

    def share_with_neurons(self, relation: str) -> float:
        """Return the share of a relation's asked facts that have found neurons; 1 while that is not known."""
        if self.run.noted("neurons", Shard(relation)) is None:
            return 1.0
        found = self.neurons("found", relation)
        return sum(map(bool, found.values())) / max(1, len(found))

    def prompts(self, relation: str) -> PromptBatch:
        """Return the prompts of a relation's asked facts; those of the last relation are kept."""
        if relation not in self._last:
            self._last.clear()
            self._last[relation] = self.ask(self.asked_facts(relation))
        return self._last[relation]

    def ask(self, facts: Iterable[Fact]) -> PromptBatch:
        """Return prompts of any facts; answers that the vocabulary cannot write are left out."""
        return make_prompts(self.host.model, FactSet(facts), unknown_answers="leave_out")

    def generator(self, *names: str) -> np.random.Generator:
        """Return a random generator for what these names say, whatever else is drawn."""
        return np.random.default_rng(self.seeds(*names))

    def seeds(self, *names: str) -> list[int]:
        """Return what that generator starts from."""
        return [self.settings.seed, *(zlib.crc32(name.encode()) for name in names)]

    # --- records ----------------------------------------------------------------------------------

    def records(self, stage: str, shard: Shard) -> "pd.DataFrame":
        """Return the records of one shard."""
        import pandas as pd

        return pd.read_parquet(self.run.record(stage, shard), partitioning=None)

    def all_records(self, stage: Stage) -> "pd.DataFrame":
        """Return the records of all shards of a stage, in their order."""
        import pandas as pd

        return pd.concat([self.records(stage.name, shard) for shard in stage.shards(self)], ignore_index=True)

    def neurons(self, kind: str, relation: str) -> dict[Fact, NeuronSet]:
        """Return the neurons of a relation's asked facts, of one of the kinds of the stage ``neurons``."""
        of_key = neuron_sets(self.records("neurons", Shard(relation)), kind)
        return {fact: of_key[fact.key] for fact in self._of[relation] if fact.key in of_key}

    # --- inputs -----------------------------------------------------------------------------------

    def inputs(self, stage: Stage, shard: Shard) -> str | None:
        """Return the digest of all that a shard is made from; None while records that it needs are missing."""
        records: dict[str, str] = {}
        for need in stage.needs:
            for other in need.shards(self):
                if shard.relation in (ALL, other.relation):
                    noted = self.run.noted(need.name, other)
                    if noted is None:
                        return None
                    records[f"{need.name}/{other.name}"] = noted["sha256"]
        chosen = self.settings.as_dict()
        before = BEFORE_THERE_WAS_A_CHOICE  # left out, so that records made then count
        return digest_of_json(
            {
                "stage": [stage.name, stage.version, shard.name],
                "settings": {name: chosen[name] for name in stage.settings if chosen[name] != before.get(name, ...)},
                "made_from": self.made_from,
                "facts": self._digest_of_facts(shard.relation),
                "source": self._digest_of_facts(None) if stage.across else None,
                "records": records,
            }
        )

    def is_current(self, stage: Stage, shard: Shard) -> bool:
        """Return whether a shard need not be made."""
        inputs = self.inputs(stage, shard)
        return inputs is not None and self.run.is_current(stage.name, shard, inputs, stage.version)

    def _digest_of_facts(self, relation: str | None) -> str:
        """Return the digest of the chosen facts of a relation (of all: ``ALL``), or of whatever else may be asked."""
        name = "" if relation is None else relation
        if name not in self._digests:
            everything = (*self.source, *self.held_out)
            facts = everything if relation is None else self.facts if relation == ALL else self._of[relation]
            self._digests[name] = digest_of_facts(facts)
        return self._digests[name]


def neuron_sets(records: "pd.DataFrame", kind: str) -> dict[str, NeuronSet]:
    """Return the neurons of one kind that records of neurons have, by the key of their fact."""
    records = records.loc[records["neurons"] == kind]
    return {
        key: NeuronSet(zip(layers, indices, strict=True))
        for key, layers, indices in zip(records["key"], records["layer"], records["index"], strict=True)
    }


def digest_of_facts(facts: Iterable[Fact]) -> str:
    """Return the SHA-256 of facts with their templates, in their order."""
    return digest_of_json([[fact.key, fact.templates] for fact in facts])


def write_records(path: Path, columns: Mapping[str, Any], schema: Any) -> None:
    """Write columns as Parquet with the types of a ``pyarrow.schema``, in its order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(columns[one.name], one.type) for one in schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd", write_page_checksum=True)
