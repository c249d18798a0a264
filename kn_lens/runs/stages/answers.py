"""Stage ``answers``: what the model answers before any intervention; the table ``answers``.

Records, one row for each queried fact:

    relation, key, object
    n_prompts    number of prompts of the fact
    n_right      number of prompts in which the object is the most probable answer
    nll          mean of -log P(object) over the prompts, in nats
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens._core.bootstrap import bootstrap_table, fact_share, perplexity
from kn_lens.facts import Fact
from kn_lens.hosts import Budget
from kn_lens.interventions import Ticks, is_known, score_answers
from kn_lens.neurons import prompts_by_fact
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.facts import FACTS

if TYPE_CHECKING:
    import pandas as pd

ANSWERS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("object", pa.string()),
        ("n_prompts", pa.int32()),
        ("n_right", pa.int32()),
        ("nll", pa.float64()),
    ]
)


def known_facts(context: RunContext, relation: str) -> list[Fact]:
    """Return the facts that the model knows: those whose object is its first answer in at least half of the prompts."""
    records = context.records(ANSWERS.name, Shard(relation))
    known = set(records["key"][is_known(records["n_right"], records["n_prompts"])])
    return [fact for fact in context.queried_facts(relation) if fact.key in known]


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    prompts = context.prompts(shard.relation)
    budget = Budget.of(context.host, context.memory_budget)
    scores = score_answers(context.host, prompts, [], budget, Ticks(progress, prompts.n_rows))
    rows: list[dict[str, Any]] = []
    for fact, index in prompts_by_fact(prompts).items():
        prompt_ids = index.cpu().numpy()
        rows.append(
            {
                "relation": fact.relation,
                "key": fact.key,
                "object": fact.object,
                "n_prompts": len(prompt_ids),
                "n_right": int((scores.rank[prompt_ids] == 0).sum()),
                "nll": float(-scores.log_prob[prompt_ids].mean()),
            }
        )
    write_rows(path, rows, ANSWERS_SCHEMA)


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the accuracy, a mean over relations, and the perplexity over all prompts.

    The control of accuracy is the constant answer: the most frequent object of the relation, whatever the subject.
    """
    records = context.all_records(ANSWERS)
    records["accuracy"] = records["n_right"].div(records["n_prompts"])
    constant_accuracy = {}
    for relation, group in records.groupby("relation", sort=False):
        constant_accuracy[str(relation)] = _constant_accuracy(group)
    return {
        "answers": _answer_table(context, records, constant_accuracy, by_relation=False),
        "answers_by_relation": _answer_table(context, records, constant_accuracy, by_relation=True),
    }


def _answer_table(
    context: RunContext, records: "pd.DataFrame", constant_accuracy: dict[str, float], by_relation: bool
) -> "pd.DataFrame":
    import pandas as pd

    settings = context.settings
    measures = {"accuracy": fact_share("accuracy", "n_prompts"), "perplexity": perplexity()}
    parts = []
    for measure, statistic in measures.items():
        table = bootstrap_table(
            records.assign(measure=measure),
            ["measure"],
            statistic,
            by_relation=by_relation,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
        if measure != "accuracy":
            table["control"] = np.nan
        elif by_relation:
            table["control"] = [constant_accuracy[relation] for relation in table["relation"]]
        else:
            table["control"] = np.mean(list(constant_accuracy.values()))
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _constant_accuracy(records: "pd.DataFrame") -> float:
    """Return the share of a relation's prompts whose object is the most frequent one."""
    n_prompts: Counter[str] = Counter()
    for name, count in zip(records["object"], records["n_prompts"], strict=True):
        n_prompts[name] += count
    return max(n_prompts.values()) / n_prompts.total()


def _passes(context: RunContext, shard: Shard) -> Passes:
    return Passes(whole=context.n_rows(shard.relation))


ANSWERS = Stage(
    name="answers",
    title="Answers of the model",
    make=_make,
    tables=_tables,
    shown={
        "answers": TableDisplay("Answers: accuracy and perplexity; the control is the relation's most frequent object")
    },
    needs=(FACTS,),
    passes=_passes,
)
"""What the model answers before any intervention; records of each fact, tables ``answers`` and by relation."""
