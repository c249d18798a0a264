"""What the method finds in the embedded models: the tables of docs/world.md.

    python -m tests.benchmarks.world [--facts N] [--templates 10] [NAME ...]

For every fact: attribution on ``--templates`` trained templates with the defaults, refined with the defaults; then
suppressing and amplifying on the same prompts and on the held-out templates, beside the most active and random
neurons, on the fact itself and on one random fact of another relation.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd

import kn_lens as kn

MODELS = ("world-bert", "world-bert-plain", "world-gpt2", "world-gpt2-plain")


def sampled(facts: kn.FactSet, n_templates: int, object_last: bool, seed: int = 0) -> kn.FactSet:
    """Leave each fact ``n_templates`` of the templates that the model can be queried with, drawn for each relation."""
    generator = np.random.default_rng(seed)
    chosen: dict[str, tuple[str, ...]] = {}
    for fact in facts:
        if fact.relation not in chosen:
            usable = [t for t in fact.templates if not object_last or t.rstrip(" .").endswith("[Y]")]
            picked = generator.permutation(len(usable))[:n_templates]
            chosen[fact.relation] = tuple(usable[i] for i in sorted(picked))
    return kn.FactSet(replace(fact, templates=chosen[fact.relation]) for fact in facts)


def study(name: str, n_facts: int | None, n_templates: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the effects, one row per fact, neurons, facts, intervention and templates; and what the search cost."""
    model = kn.load_model(name)
    causal = kn.host_of(model).kind == "causal"
    trained = sampled(kn.FactSet.world(split="trained"), n_templates, causal)
    held_out = kn.FactSet.world(split="held_out")
    if n_facts is not None:
        trained = trained.sample(n_facts, seed=0)
        held_out = kn.FactSet(fact for fact in held_out if fact in set(trained))
    prompts = kn.make_prompts(model, trained)
    unseen = kn.make_prompts(model, held_out)
    started = time.perf_counter()
    attr = kn.attribute(model, prompts)
    seconds = time.perf_counter() - started
    neurons = kn.refine(attr)
    active = kn.activation_neurons(kn.attribute(model, prompts, method="activation"), neurons)
    sizes = np.array([len(found) for found in neurons.values()])
    layers = sum(np.array(found.layer_counts(kn.host_of(model).n_layers)) for found in neurons.values())
    cost = {
        "prompts": len(prompts),
        "points per pair": float(attr.n_points.double().mean()),
        "mean gap": float(attr.completeness_gap.abs().mean()),
        "largest gap": float(attr.completeness_gap.abs().max()),
        "unconverged pairs": len(attr.unconverged),
        "pairs": attr.n_points.numel(),
        "seconds": seconds,
        "P": float(attr.clean.mean()),
        "neurons per fact": float(sizes.mean()),
        "facts without": int((sizes == 0).sum()),
        "share of layers": " ".join(f"{share:.2f}" for share in layers / max(1, layers.sum())),
    }
    tables = []
    for what, intervene in {"suppress": kn.Suppress, "amplify x2": kn.Amplify}.items():
        for where, batch in {"same": prompts, "held-out": unseen}.items():
            effects = kn.controlled_effects(model, batch, neurons, active, intervene=intervene)
            tables.append(effects.assign(intervention=what, templates=where))
    return pd.concat(tables, ignore_index=True), cost


def markdown(effects: pd.DataFrame) -> str:
    """Return one line per intervention and templates, with the change ratios in percent and their 95% intervals."""
    lines = [
        "| | templates | found, own | found, other | active, own | active, other | random, own |"
        " own/other | own/random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (what, where), part in effects.groupby(["intervention", "templates"], sort=False):
        table = kn.effect_table(part).set_index(["neuron_set", "scope"])

        def cell(kind: str, scope: str, table: pd.DataFrame = table) -> str:
            row = table.loc[(kind, scope)]
            return f"{row.change_ratio:+.2%} ({row.low:+.2%} to {row.high:+.2%})"

        change = table["change"]
        lines.append(
            f"| {what} | {where} | {cell('found', 'own')} | {cell('found', 'other')} | {cell('activation', 'own')} | "
            f"{cell('activation', 'other')} | {cell('random', 'own')} | "
            f"{abs(change['found', 'own'] / change['found', 'other']):.1f} | "
            f"{abs(change['found', 'own'] / change['random', 'own']):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--facts", type=int)
    parser.add_argument("--templates", type=int, default=10)
    args = parser.parse_args()
    for name in args.names:
        effects, cost = study(name, args.facts, args.templates)
        print(f"### {name}\n")
        print(
            ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in cost.items()
            )
        )
        print(f"\n{markdown(effects)}\n", flush=True)


if __name__ == "__main__":
    main()
