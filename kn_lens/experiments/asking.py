"""Stage ``facts``: what the model is asked, and what it is not, and why.

A fact is asked when at least ``min_prompts`` of its templates can be put to the model: a causal model takes templates
that end with the answer, and an answer must be writable in the vocabulary.

Records, one a fact: ``relation``, ``subject``, ``object``, ``key``; ``digest``, of it with its templates, which tells
whether another run asks the same; ``n_templates``; ``n_prompts`` and ``n_rows`` that came of them; ``asked``. Where a
whole relation cannot be asked, ``why`` says what stood in the way, else it is empty.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kn_lens.errors import NoPromptError
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Stage, Study, Tick, digest_of_facts, write_records

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "subject", "object", "key", "digest")),
        *((name, pa.int32()) for name in ("n_templates", "n_prompts", "n_rows")),
        ("asked", pa.bool_()),
        ("why", pa.string()),
    ]
)


def _make(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    facts = study.facts.of(shard.relation)
    phrased = np.array([bool(fact.templates) for fact in facts])
    why = "" if phrased.any() else "Its facts have no templates."
    n_prompts, n_rows = np.zeros((2, len(facts)), dtype=int)
    if phrased.any():
        try:
            prompts = study.ask(fact for fact in facts if fact.templates)
        except NoPromptError as error:
            why = str(error)
        else:
            owner, rows = prompts.fact_index.cpu().numpy(), prompts.rows_per_prompt.cpu().numpy()
            n_prompts[phrased] = np.bincount(owner, minlength=phrased.sum())
            n_rows[phrased] = np.bincount(owner, weights=rows, minlength=phrased.sum())
    columns = {name: [getattr(fact, name) for fact in facts] for name in ("relation", "subject", "object", "key")}
    columns |= {"digest": [digest_of_facts([fact]) for fact in facts]}
    columns |= {"n_templates": [len(fact.templates) for fact in facts], "n_prompts": n_prompts, "n_rows": n_rows}
    columns |= {"asked": n_prompts >= study.settings.min_prompts, "why": [why] * len(facts)}
    write_records(path, columns, SCHEMA)


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return the coverage of the data: facts and prompts by relation, and how many are asked."""
    import pandas as pd

    rows = []
    for shard in STAGE.shards(study):
        records = study.records("facts", shard)
        asked = records[records["asked"]]
        rows.append(
            {
                "relation": shard.relation,
                "facts": len(records),
                "facts_asked": len(asked),
                "pairs": int(records["n_templates"].sum()),
                "prompts_asked": int(asked["n_prompts"].sum()),
                "rows": int(asked["n_rows"].sum()),
                "why": records["why"].iloc[0],
            }
        )
    return {"coverage": pd.DataFrame(rows)}


STAGE = Stage(
    name="facts",
    title="Which facts can be asked",
    make=_make,
    tables=_tables,
    settings=("min_prompts",),
    shards=lambda study: [Shard(relation) for relation in study.facts.relations],
    version=2,
)
