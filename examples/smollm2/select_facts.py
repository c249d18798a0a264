"""Facts that a causal model knows, for a run on it: ParaRel's in the package's templates, and the embedded ones.

    python select_facts.py MODEL PARAREL OUT [--device cuda] [--relations P30 P36 ...]

The rule. At most ``QUERIED`` facts of each relation are drawn. Facts whose subject contains the answer as a word are
left out, because the answer can be copied. Each fact is asked in eight templates. It is known if its answer is the
model's first in at least half of them. Of each relation the first ``TAKEN`` known facts are taken, no more than
``SAME_ANSWER`` of them with the same answer. Relations with fewer than ``LEAST`` such facts are left out. The next
``SPARE`` known facts of each relation are kept for the choice of lambdas.

Writes ``pararel.jsonl`` and ``world.jsonl``, the facts with their templates; the spare facts as ``..._held_out.jsonl``;
and ``selection.csv``, which counts for each relation what was drawn, queried, known, taken and left out.
"""

import argparse
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import kn_lens as kn

QUERIED, TAKEN, SAME_ANSWER, LEAST, SPARE = 100, 8, 3, 3, 2
N_TEMPLATES = 8
SEED = 0


def can_be_copied(fact: kn.Fact) -> bool:
    """Return whether the answer stands in the subject as a word."""
    return bool(re.search(rf"\b{re.escape(fact.object)}\b", fact.subject, re.IGNORECASE))


def object_last(facts: kn.FactSet) -> kn.FactSet:
    """Return facts with some templates that end with the object, drawn at random for each relation."""
    shortened = []
    for fact in facts:
        usable = [template for template in fact.templates if template.endswith("[Y].")]
        order = np.random.default_rng(SEED).permutation(len(usable))[:N_TEMPLATES]
        shortened.append(replace(fact, templates=tuple(usable[index] for index in sorted(order))))
    return kn.FactSet(shortened)


def shares_right(model: Any, facts: list[kn.Fact]) -> dict[str, float]:
    """Return the share of a fact's prompts in which its answer is the model's first, by the key of the fact."""
    prompts = kn.make_prompts(model, facts, unknown_answers="leave_out", min_prompts=3)
    right: dict[str, list[bool]] = {}
    for number, rank in enumerate(kn.measure(model, prompts, []).rank_before):
        right.setdefault(prompts.fact(number).key, []).append(rank == 0)
    return {key: float(np.mean(answers)) for key, answers in right.items()}


def with_few_alike(facts: list[kn.Fact]) -> list[kn.Fact]:
    """Return facts without those whose answer ``SAME_ANSWER`` earlier ones have."""
    n_answers: Counter[str] = Counter()
    kept = []
    for fact in facts:
        n_answers[fact.object] += 1
        if n_answers[fact.object] <= SAME_ANSWER:
            kept.append(fact)
    return kept


def select(model: Any, facts: kn.FactSet, n_queried: int) -> tuple[list[kn.Fact], list[kn.Fact], pd.DataFrame]:
    """Return the facts of the run, the spare ones, and the counts for each relation."""
    taken: list[kn.Fact] = []
    spare: list[kn.Fact] = []
    rows = []
    for relation in facts.relations:
        group = facts.of(relation)
        sample = group.sample(min(n_queried, len(group)), seed=SEED)
        asked = [fact for fact in sample if not can_be_copied(fact)]
        right = shares_right(model, asked)
        known = [fact for fact in asked if right.get(fact.key, 0) >= 0.5]
        kept = with_few_alike(known)
        enough = len(kept) >= LEAST
        if enough:
            taken += kept[:TAKEN]
            spare += kept[TAKEN : TAKEN + SPARE]
        row = {"relation": relation, "facts": len(group), "drawn": len(sample), "copied": len(sample) - len(asked)}
        row |= {"queried": len(right), "right": np.mean(list(right.values())), "known": len(known)}
        rows.append({**row, "same_answer": len(known) - len(kept), "taken": len(kept[:TAKEN]) if enough else 0})
    return taken, spare, pd.DataFrame(rows)


def main() -> None:
    """Select facts of both sources and write them."""
    parser = argparse.ArgumentParser(description="Write the facts that a causal model knows.")
    parser.add_argument("model")
    parser.add_argument("pararel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--queried", type=int, default=QUERIED, help="largest number of facts drawn of each relation")
    parser.add_argument("--relations", nargs="*", help="relations of ParaRel; all unless given")
    parser.add_argument("--world-relations", nargs="*", help="relations of the embedded facts; all unless given")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = kn.load_model(given.model, device=given.device)
    world = kn.FactSet.world("trained")
    sources = {
        "pararel": kn.FactSet.from_pararel(given.pararel, given.relations, templates="kn_lens"),
        "world": object_last(world.of(*given.world_relations) if given.world_relations else world),
    }
    tables = []
    for name, facts in sources.items():
        taken, spare, table = select(model, facts, given.queried)
        table.insert(0, "facts_of", name)
        tables.append(table)
        kn.FactSet(taken).to_jsonl(given.out / f"{name}.jsonl")
        kn.FactSet(spare).to_jsonl(given.out / f"{name}_held_out.jsonl")
    pd.concat(tables).to_csv(given.out / "selection.csv", index=False)
    print(pd.concat(tables).to_string())


if __name__ == "__main__":
    main()
