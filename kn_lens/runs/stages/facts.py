"""Stage ``facts``: which facts the model can be queried for, and why the others cannot; the table ``coverage``.

A fact is queried when at least ``min_prompts`` of its templates give a prompt for the model. A causal model takes only
templates that end with the answer, and the vocabulary must be able to write the answer.

Records, one row for each fact:

    relation, relation_label, subject, object, key; records of earlier runs have no label
    digest         of the fact with its templates; two runs query the same fact where their digests are equal
    n_templates    number of templates
    n_prompts      number of prompts made from them
    n_rows         number of rows of these prompts: a prompt has one row for each token of its answer
    queried        whether the fact is queried
    why            where no fact of the relation has a prompt: the reason; empty otherwise
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens.errors import NoPromptError
from kn_lens.runs.context import RunContext
from kn_lens.runs.data import digest_of_facts
from kn_lens.runs.directory import Shard
from kn_lens.runs.stage import Progress, Stage, write_rows

if TYPE_CHECKING:
    import pandas as pd

FACTS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("relation_label", pa.string()),
        ("subject", pa.string()),
        ("object", pa.string()),
        ("key", pa.string()),
        ("digest", pa.string()),
        ("n_templates", pa.int32()),
        ("n_prompts", pa.int32()),
        ("n_rows", pa.int32()),
        ("queried", pa.bool_()),
        ("why", pa.string()),
    ]
)


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    facts = context.facts.of(shard.relation)
    has_templates = np.array([bool(fact.templates) for fact in facts])
    n_prompts, n_rows = np.zeros((2, len(facts)), dtype=int)
    why = ""
    if not has_templates.any():
        why = "Its facts have no templates."
    else:
        try:
            prompts = context.make_prompts(fact for fact in facts if fact.templates)
        except NoPromptError as error:
            why = str(error)
        else:
            fact_index = prompts.fact_index.cpu().numpy()
            rows_per_prompt = prompts.rows_per_prompt.cpu().numpy()
            n_prompts[has_templates] = np.bincount(fact_index, minlength=has_templates.sum())
            n_rows[has_templates] = np.bincount(fact_index, weights=rows_per_prompt, minlength=has_templates.sum())
    rows: list[dict[str, Any]] = []
    for index, fact in enumerate(facts):
        rows.append(
            {
                "relation": fact.relation,
                "relation_label": fact.relation_label,
                "subject": fact.subject,
                "object": fact.object,
                "key": fact.key,
                "digest": digest_of_facts([fact]),
                "n_templates": len(fact.templates),
                "n_prompts": n_prompts[index],
                "n_rows": n_rows[index],
                "queried": n_prompts[index] >= context.settings.min_prompts,
                "why": why,
            }
        )
    write_rows(path, rows, FACTS_SCHEMA)


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the coverage of the data: the numbers of facts and prompts of each relation, and of those queried."""
    import pandas as pd

    rows = []
    for shard in FACTS.shards(context):
        records = context.records("facts", shard)
        queried = records.query("queried")
        rows.append(
            {
                "relation": shard.relation,
                "n_facts": len(records),
                "n_queried": len(queried),
                "n_templates": int(records["n_templates"].to_numpy().sum()),
                "n_prompts": int(queried["n_prompts"].to_numpy().sum()),
                "n_rows": int(queried["n_rows"].to_numpy().sum()),
                "why": records["why"].iloc[0],
            }
        )
    return {"coverage": pd.DataFrame(rows)}


def _shards(context: RunContext) -> list[Shard]:
    return [Shard(relation) for relation in context.facts.relations]


FACTS = Stage(
    name="facts",
    title="Which facts can be queried",
    make=_make,
    tables=_tables,
    settings=("min_prompts",),
    shards=_shards,
    version=2,
)
"""Which facts the model can be queried for; records of each fact, table ``coverage``."""
