"""Neurons that the facts of the multilingual control have in all languages, and what they do.

    python -m tests.benchmarks.languages

Prints the tables of docs/world.md: all facts in all languages and trained templates, sets by `refine` with the default
thresholds. Random neurons are as many of the same layers.
"""

import pandas as pd

import kn_lens as kn

MODEL = "world-bert-multilingual"
LANGUAGES = ("en", "de", "es", "fr")


def changes(model: object, prompts: kn.PromptBatch, neurons: dict[kn.Fact, kn.NeuronSet]) -> dict[str, float]:
    """Return the relative change of the answer's probability for the neurons and for random ones, mean over facts."""
    effects = kn.controlled_effects(model, prompts, neurons, across_relations=False)
    means = effects.groupby("neuron_set")[["before", "after"]].mean()
    return (means["after"] / means["before"] - 1).to_dict()


def main() -> None:
    """Print the tables."""
    model = kn.load_model(MODEL)
    facts = kn.FactSet.world("trained", languages=LANGUAGES)
    prompts = kn.make_prompts(model, facts)
    attribution = kn.attribute(model, prompts)
    found = kn.language_neurons(kn.refine(attribution))
    print(f"{len(prompts):,} prompts, {len(attribution.unconverged)} not converged")
    print(found)
    by_relation = found.table.groupby("relation", sort=False)
    columns = ["n_neurons", "n_independent", "null_mean", "shared", "jaccard", "null_jaccard"]
    table = by_relation[columns].mean()
    table.loc["mean"] = table.mean()
    print(table.round(3).to_string())
    print(found.by_layer().round(3).to_string(index=False))
    rows = []
    kinds = {"found": found.found, "independent": found.independent, "specific": found.specific}
    for language in LANGUAGES:
        kinds[f"found in {language}, asked in the others"] = {
            fact: neurons for fact, neurons in found.of_language(language).items() if fact.language != language
        }
    for name, sets in kinds.items():
        filled = {fact: neurons for fact, neurons in sets.items() if neurons}
        size = sum(map(len, filled.values())) / len(filled)
        rows.append({"neurons": name, "versions": len(filled), "size": size, **changes(model, prompts, filled)})
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
