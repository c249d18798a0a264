"""Stage ``answers``: what the model knows before anything is done to it.

Records, one a fact that is asked: ``relation``, ``key``, ``object``; ``n_prompts``; ``n_right``, in how many of them
the object is the most probable answer; ``nll``, the mean of -log P(object) in nats.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kn_lens._bootstrap import perplexity, share_of, summed_up
from kn_lens._budget import Budget
from kn_lens._reading import Ticks, read
from kn_lens._refining import prompts_by_fact
from kn_lens.experiments import asking
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "object")),
        *((name, pa.int32()) for name in ("n_prompts", "n_right")),
        ("nll", pa.float64()),
    ]
)


def known_facts(study: Study, relation: str) -> list[Fact]:
    """Return the facts of a relation that the model knows: those it answers rightly in at least half of the prompts."""
    records = study.records(STAGE.name, Shard(relation))
    known = set(records["key"][2 * records["n_right"] >= records["n_prompts"]])
    return [fact for fact in study.asked_facts(relation) if fact.key in known]


def _make(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    prompts = study.prompts(shard.relation)
    reading = read(study.host, prompts, [], Budget.of(study.host, study.memory_budget), Ticks(tick, prompts.n_rows))
    mine = {fact: chosen.cpu().numpy() for fact, chosen in prompts_by_fact(prompts).items()}
    columns = {
        "relation": [fact.relation for fact in mine],
        "key": [fact.key for fact in mine],
        "object": [fact.object for fact in mine],
        "n_prompts": [len(chosen) for chosen in mine.values()],
        "n_right": [int((reading.rank[chosen] == 0).sum()) for chosen in mine.values()],
        "nll": [float(-reading.log_prob[chosen].mean()) for chosen in mine.values()],
    }
    write_records(path, columns, SCHEMA)


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return accuracy, the mean of the relations, and the perplexity of all prompts.

    The control of accuracy is to give always the relation's most frequent object.
    """
    import pandas as pd

    records = study.all_records(STAGE)
    records["accuracy"] = records["n_right"].div(records["n_prompts"])
    majority = {relation: _most_frequent(group) for relation, group in records.groupby("relation", sort=False)}
    how = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    measures = {"accuracy": share_of("accuracy", "n_prompts"), "perplexity": perplexity()}
    tables = {}
    for name, by_relation in (("answers", False), ("answers_by_relation", True)):
        parts = []
        for measure, statistic in measures.items():
            part = summed_up(records.assign(measure=measure), ["measure"], statistic, by_relation=by_relation, **how)
            controls = [majority[one] for one in part["relation"]] if by_relation else np.mean(list(majority.values()))
            parts.append(part.assign(control=controls if measure == "accuracy" else np.nan))
        tables[name] = pd.concat(parts, ignore_index=True)
    return tables


def _most_frequent(group: "pd.DataFrame") -> float:
    """Return the share of prompts with the object that most have."""
    counts: Counter[str] = Counter()
    for name, n_prompts in zip(group["object"], group["n_prompts"], strict=True):
        counts[name] += n_prompts
    return max(counts.values()) / counts.total()


STAGE = Stage(
    name="answers",
    title="What the model answers",
    make=_make,
    tables=_tables,
    shown={"answers": Shown("What the model answers, beside always giving the relation's most frequent object")},
    needs=(asking.STAGE,),
    passes=lambda study, shard: Passes(whole=study.n_rows(shard.relation)),
)
