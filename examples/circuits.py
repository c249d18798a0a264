"""Circuits of capitals in a pretrained model, one hop and two: how many neurons and heads keep 80% of the answer.

    python examples/circuits.py MODEL [OUT]

MODEL is a causal model, by name or folder; OUT a folder for the circuits as JSON. The numbers in docs/circuits.md are
those of SmolLM2-135M-Instruct. Facts are those of the embedded world whose answer is one token and the most probable.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import kn_lens as kn

CAPITAL = "The capital of [X] is [Y]."
CITY = "[X] is a city in the country of [Y]."
TWO_HOPS = "[X] is a city in a country whose capital is [Y]."
SIZES = (1, 10, 30, 100, 300, 1000, 3000, 10000)


def known_facts(model: object, facts: Sequence[kn.Fact], template: str) -> list[kn.Fact]:
    """Return the facts whose answer is one token, and the most probable one."""
    prompts = kn.make_prompts(model, facts, templates=(template,), unknown_answers="leave_out")
    single = prompts.select((prompts.rows_per_prompt == 1).nonzero().flatten())
    first = kn.predict(model, single, k=1)
    is_right = first["token_id"].to_numpy() == single.target_ids.cpu().numpy()
    return [single.fact(number) for number in np.flatnonzero(is_right)]


def two_hop_facts(world: kn.FactSet) -> list[kn.Fact]:
    """Return cities that are no capitals, with the capital of their country."""
    capital = {fact.subject: fact.object for fact in world if fact.relation == "P36"}
    facts = []
    for fact in world:
        if fact.relation == "P17" and capital.get(fact.object, fact.subject) != fact.subject:
            facts.append(kn.Fact(fact.subject, "two hops", capital[fact.object], (TWO_HOPS,)))
    return facts


def pairs_of(model: object, facts: Sequence[kn.Fact], template: str) -> kn.PromptPairs:
    """Return the pairs of facts that are known, each with another of them."""
    return kn.counterfactual_pairs(model, facts, templates=(template,), known=True)


def report(title: str, pairs: kn.PromptPairs, circuits: Sequence[kn.Circuit], seconds: float) -> None:
    """Print the sizes of circuits, and where their nodes are."""
    sizes = np.array([len(circuit) for circuit in circuits])
    shares, layers = [], Counter()
    for pair, circuit in enumerate(circuits):
        at_read = [node for node in circuit if node.position == int(pairs.clean.read_pos[pair])]
        shares.append(len(at_read) / len(circuit))
        layers.update(node.layer for node in circuit)
    top = ", ".join(f"{layer}: {count / sizes.sum():.0%}" for layer, count in layers.most_common(6))
    n_nodes = np.median([circuit.meta["n_nodes"] for circuit in circuits])
    print(f"\n{title}: {len(circuits)} facts, {seconds / len(circuits):.1f} s a fact")
    print(f"  nodes that keep 80%: median {np.median(sizes):.0f} of {n_nodes:.0f} ({sizes.min()} to {sizes.max()})")
    print(f"  at the read position {np.mean(shares):.0%}; layers {top}")


def find(title: str, model: object, pairs: kn.PromptPairs, out: Path | None, **options: object) -> list[kn.Circuit]:
    """Find the circuits of some pairs, print and save them."""
    start = time.perf_counter()
    circuits = kn.find_circuits(model, pairs, **options)
    report(title, pairs, circuits, time.perf_counter() - start)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for number, circuit in enumerate(circuits):
            circuit.save(out / f"{title.replace(' ', '-').replace(',', '')}-{number}.json")
    return circuits


def curve(title: str, model: object, pairs: kn.PromptPairs, kinds: Sequence[str]) -> None:
    """Print faithfulness and completeness by size, beside controls of the same shape."""
    scores = kn.circuit_scores(model, pairs)
    measured = kn.faithfulness(model, scores, sizes=SIZES, kinds=kinds)
    table = measured.curve()
    table = table[table["measure"] != "kept"]
    texts = [f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in table.itertuples()]
    table = table.assign(text=texts).pivot(index=["measure", "size"], columns="set", values="text")
    print(f"\n{title}, n = {len(pairs)}")
    with pd.option_context("display.width", 160):
        print(table[["circuit", "active", "random"]].to_string())


def main() -> None:
    """Print everything."""
    model = kn.load_model(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    world = kn.FactSet.world()
    capitals = known_facts(model, [fact for fact in world if fact.relation == "P36"], CAPITAL)
    one_hop = pairs_of(model, capitals, CAPITAL)
    print(f"capitals known: {len(capitals)}; with a counterfactual: {len(one_hop)}")
    neurons = find("one hop, neurons", model, one_hop, out, kinds="neuron")
    find("one hop, neurons and heads", model, one_hop, out)
    find("one hop, neurons by magnitude", model, one_hop, out, kinds="neuron", by="magnitude")
    find("one hop, neurons, greedy", model, one_hop.select(range(4)), out, kinds="neuron", selection="greedy")
    curve("one hop, circuits of neurons", model, one_hop, ["neuron"])
    curve("one hop, circuits of neurons and heads", model, one_hop, ["neuron", "head"])

    cities = known_facts(model, [fact for fact in world if fact.relation == "P17"], CITY)
    country = {fact.subject: fact.object for fact in cities}
    both_known = {fact.subject for fact in capitals}
    answered = known_facts(model, two_hop_facts(world), TWO_HOPS)
    hops = [fact for fact in answered if country.get(fact.subject) in both_known]
    two_hops = pairs_of(model, hops, TWO_HOPS)
    print(f"\ntwo hops answered: {len(answered)}, with both hops known: {len(hops)}, with a pair: {len(two_hops)}")
    found = find("two hops, neurons", model, two_hops, out, kinds="neuron")
    find("two hops, neurons and heads", model, two_hops, out)
    curve("two hops, circuits of neurons", model, two_hops, ["neuron"])
    capital_circuits = {one_hop.fact(number).subject: circuit for number, circuit in enumerate(neurons)}
    same, other = [], []
    for number, circuit in enumerate(found):
        own = country[two_hops.fact(number).subject]
        for subject, one in capital_circuits.items():
            shared = len(circuit.neurons & one.neurons) / len(circuit.neurons | one.neurons)
            (same if subject == own else other).append(shared)
    if same:
        print(f"\nneurons shared with the one-hop circuit (Jaccard): of the same country {np.mean(same):.2f} "
              f"(n = {len(same)}), of others {np.mean(other):.2f} (n = {len(other)})")  # fmt: skip

    france = one_hop.clean.select(
        [number for number in range(len(one_hop)) if one_hop.fact(number).subject == "France"]
    )
    start = time.perf_counter()
    (query,) = kn.query_neurons(model, france)
    print(f"\nquery neurons of {query.prompt!r}, {time.perf_counter() - start:.1f} s:")
    print("  value vectors " + ", ".join(f"{v} {gain:.2f}" for v, gain in list(query.values.items())[:5]))
    print("  query neurons " + ", ".join(f"{node} {score:.2f}" for node, score in query.top(8).items()))


if __name__ == "__main__":
    main()
