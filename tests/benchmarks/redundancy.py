"""Facts with more than one home, and facts whose neurons depend on wording, as docs/howto/redundant.md shows.

    python -m tests.benchmarks.redundancy world-bert world-gpt2 FOLDER [--facts-per-relation 8] [--templates 8]

Facts are those that the model knows: its first answer to at least half of their prompts. ``as greedy`` are the facts of
which the greedy search finds a smallest subset of the same size, and as many that suffice, as all subsets have.
"""

import argparse
import time

import kn_lens as kn
from tests.benchmarks.starts import facts_of

SHARES = (None, 0.5)


def show(name: str, per_relation: int, n_templates: int) -> None:
    """Print the tables of a model."""
    model = kn.load_model(name)
    _, facts = facts_of(model, per_relation, n_templates)
    prompts = kn.make_prompts(model, facts)
    attr = kn.attribute(model, prompts, keep=0.1)
    neurons = kn.refine_by_relation(attr).neurons
    active = kn.activation_neurons(kn.attribute(model, prompts, method="activation"), neurons)
    sizes = [len(found) for found in neurons.values()]
    print(f"\n{name}: {len(facts)} facts, {len(prompts)} prompts, {sum(sizes) / len(sizes):.2f} neurons a fact")
    for share in SHARES:
        began = time.perf_counter()
        sets = kn.degenerate_sets(model, prompts, neurons, active, share=share)
        seconds = time.perf_counter() - began
        grown = kn.degenerate_sets(model, prompts, neurons, share=share, controls=False, enumerate_up_to=0)
        alike = []
        for one in sets.results:
            if one.neuron_set == "found" and one.exact:
                greedy = grown[one.fact]
                same_size = len(one.smallest or ()) == len(greedy.smallest or ())
                alike.append((one.taken, same_size and len(one.sufficient) == len(greedy.sufficient)))
        taken = [same for was_taken, same in alike if was_taken]
        print(f"share={share}: {sets!r}, {seconds:.0f} s")
        print(
            f"as greedy: {sum(same for _, same in alike)} of {len(alike)}; of those taken {sum(taken)} of {len(taken)}"
        )
        print(sets.summary().to_string(index=False, float_format=lambda value: f"{value:.3f}"), flush=True)
    found = kn.consistency(attr)
    print(f"{found!r}")
    print(found.summary().to_string(index=False, float_format=lambda value: f"{value:.3f}"), flush=True)


def main() -> None:
    """Print the tables of all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--facts-per-relation", type=int, default=8)
    parser.add_argument("--templates", type=int, default=8)
    arguments = parser.parse_args()
    for name in arguments.models:
        show(name, arguments.facts_per_relation, arguments.templates)


if __name__ == "__main__":
    main()
