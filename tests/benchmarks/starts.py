"""What the start of the path changes: which neurons are found, and what silencing them does, as docs/method.md shows.

    python -m tests.benchmarks.starts world-bert world-gpt2 FOLDER [--facts-per-relation 6] [--templates 8]

Facts are those that the model knows: its first answer to at least half of their prompts. Starts: ``zero``; ``mean``,
over all queried facts of the relation, known or not; ``counterfactual``, the same prompts about the next subject of the
relation, with the fact's own answer; and scores averaged over three such subjects. ``alike`` is the mean Jaccard index
of a fact's neurons and those from zero.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

import kn_lens as kn


def facts_of(model: Any, per_relation: int, n_templates: int) -> tuple[list[kn.Fact], list[kn.Fact]]:
    """Return some facts of each relation, and those of them that the model knows."""
    world = kn.FactSet.world(split="trained")
    facts = []
    for relation in world.relations:
        for fact in list(world.of(relation))[: 3 * per_relation]:
            facts.append(replace(fact, templates=fact.templates[:n_templates]))
    prompts = kn.make_prompts(model, facts, unknown_answers="leave_out", min_prompts=3)
    rank_of_prompt = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet()))["rank_before"].to_numpy()
    known = []
    queried = []
    for fact, n_prompts in prompts.prompts_per_fact().items():
        if not n_prompts:
            continue
        queried.append(fact)
        numbers = prompts.indices_of(fact)
        if np.mean(rank_of_prompt[numbers] == 0) >= 0.5:
            known.append(fact)
    chosen: list[kn.Fact] = []
    for relation in world.relations:
        chosen += [fact for fact in known if fact.relation == relation][:per_relation]
    return queried, chosen


def counterfactuals(model: Any, prompts: kn.PromptBatch, queried: list[kn.Fact], shift: int) -> kn.PromptBatch:
    """Return each prompt about another subject of the relation, with its own answer."""
    facts = []
    for fact in dict.fromkeys(prompts.fact(number) for number in range(len(prompts))):
        others = [other for other in queried if other.relation == fact.relation]
        place = others.index(fact)
        other = next(other for other in others[place + shift :] + others if other.subject != fact.subject)
        facts.append(replace(fact, subject=other.subject, uid=f"{fact.key} {shift}"))
    return kn.make_prompts(model, facts)


def compared(name: str, per_relation: int, n_templates: int) -> pd.DataFrame:
    """Return one row for each start."""
    model = kn.load_model(name)
    queried, chosen = facts_of(model, per_relation, n_templates)
    prompts = kn.make_prompts(model, chosen)
    over = kn.make_prompts(model, queried)
    others = [counterfactuals(model, prompts, queried, shift) for shift in (1, 2, 3)]
    starts: dict[str, Any] = {
        "zero": "zero",
        "mean": kn.MeanStart(over),
        "counterfactual": others[0],
        "three counterfactuals": others,
    }
    reference: dict[kn.Fact, kn.NeuronSet] = {}
    rows = []
    for label, start in starts.items():
        began = time.perf_counter()
        attr = kn.attribute(model, prompts, start=start, keep=0.1)
        seconds = time.perf_counter() - began
        neurons = dict(kn.refine_by_relation(attr).neurons)
        reference = reference or neurons
        alike = [
            len(neurons[fact] & reference[fact]) / max(len(neurons[fact] | reference[fact]), 1) for fact in neurons
        ]
        effects = kn.controlled_effects(model, prompts, neurons)
        totals = effects.groupby(["neuron_set", "scope"])[["before", "after"]].mean()
        change = totals["after"] / totals["before"] - 1
        rows.append(
            {
                "model": name,
                "start": label,
                "facts": len(neurons),
                "prompts": len(prompts),
                "neurons a fact": np.mean([len(found) for found in neurons.values()]),
                "alike": np.mean(alike),
                "own": change["found", "own"],
                "other": change["found", "other"],
                "random": change["random", "own"],
                "points": float(attr.n_points.double().mean()),
                "unconverged": len(attr.unconverged),
                "seconds": seconds,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--facts-per-relation", type=int, default=6)
    parser.add_argument("--templates", type=int, default=8)
    arguments = parser.parse_args()
    for name in arguments.models:
        table = compared(name, arguments.facts_per_relation, arguments.templates)
        print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"), flush=True)


if __name__ == "__main__":
    main()
