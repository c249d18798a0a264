"""The demo in words and tables: what was found, how sure it is, and what it does and does not show."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from kn_lens.cli._tables import effects_table, neuron_names, percent, table
from kn_lens.cli._terminal import out

WIDTH = 88
NEURONS_SHOWN = 12
_ORIGIN = {
    True: (
        "Its facts were put into its MLPs by training, so that a method can be checked against a known answer: a "
        "positive control, and no evidence about other models."
    ),
    False: "It was trained plainly: nothing in its training says where facts are kept.",
    None: "",
}


def tell(name: str, document: Mapping[str, Any]) -> None:
    """Print one section of the demo, given all that is known so far."""
    _SECTIONS[name](document[name], document)


def _model(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    _say(
        f"{section['name']}: a {section['kind']} language model ({section['architecture']}), {section['n_layers']} "
        f"layers of {section['d_mlp']} MLP neurons, asked for {section['n_facts']:,} facts of "
        f"{section['n_relations']} relations. {_ORIGIN[section['constructed']]}".rstrip()
    )


def _question(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    _head("1. What does the model answer?")
    for answer in section["answers"]:
        several = answer["n_answer_tokens"] > 1
        _say(f"{answer['text']}  ({answer['templates']} wording{', first token' if several else ''})")
        tokens = zip(answer["tokens"], answer["probabilities"], strict=True)
        _say("  " + ", ".join(f"{token} {probability:.3f}" for token, probability in tokens))


def _neurons(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    fact = document["question"]["fact"]
    _head(f"2. Which neurons carry {fact['subject']} -> {fact['object']}?")
    _say(
        f"Integrated gradients share the answer's probability (mean {section['mean_probability']:.3f}) out among "
        f"{section['n_candidates']:,} neurons, for each of {section['n_prompts']} wordings. Those that score at least "
        f"a fifth of the top score in 70% of the wordings: {len(section['neurons']) or 'none'}."
    )
    if section["neurons"]:
        numbers = ("wordings", "mean score", "of the probability")
        shown = table("", "neuron", *numbers, right=numbers)
        strongest = sorted(section["neurons"], key=lambda neuron: -neuron["mean_score"])
        for neuron in strongest[:NEURONS_SHOWN]:
            shown.add_row(
                neuron_names([[neuron["layer"], neuron["index"]]]),
                f"{neuron['n_prompts']}/{section['n_prompts']}",
                f"{neuron['mean_score']:.3f}",
                f"{neuron['mean_score'] / section['mean_probability']:.0%}",
            )
        _show(shown)
        if len(strongest) > NEURONS_SHOWN:
            _say(f"{len(strongest) - NEURONS_SHOWN} weaker ones are not shown; --json has them.")
    _say(
        f"Error bar: the scores of a layer must sum to what the layer as a whole contributes; they miss it by "
        f"{section['largest_gap']:.0e} at most ({section['mean_points']:.1f} gradients per wording and layer, "
        f"{section['n_unconverged']} of {section['n_pairs']} above the tolerance)."
    )


def _changed(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    fact = document["question"]["fact"]
    _head("3. Off, doubled, and other neurons in their place")
    asked = [f"{one['templates']} ({one['n_prompts']})" for one in section["conditions"][0]["measured"]]
    shown = table("", f"P({fact['object']}), right", "n", *asked, "says", right=("n", *asked))
    clean = [one["probability"] for one in section["conditions"][0]["measured"]]
    for row in section["conditions"]:
        changes = [percent(one["probability"] / before - 1) for one, before in zip(row["measured"], clean, strict=True)]
        cells = [
            f"{one['probability']:.3f} {change if row['n_neurons'] else '':>6} {one['n_right']:>2}"
            for one, change in zip(row["measured"], changes, strict=True)
        ]
        shown.add_row(row["condition"], str(row["n_neurons"]), *cells, row["measured"][0]["most_frequent_answer"])
    _show(shown)
    _say(
        "n: neurons; right: wordings with the right answer on top. Held-out wordings were not used to find the "
        "neurons. Without the hooks, the model answers "
        + ("as before, bit for bit." if section["restored"] else "otherwise than before: please report this.")
    )


def _specificity(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    _head("4. This fact alone? A sample of all relations")
    _say(
        f"{section['n_facts']} facts of {section['n_relations']} relations in {section['n_prompts']:,} prompts, "
        f"{section['mean_neurons']:.1f} neurons a fact ({section['n_facts_without_neurons']} facts without any). "
        "Change of the answer's probability, for the fact itself and for a fact of another relation, "
        "[95% bootstrap interval]:"
    )
    _show(effects_table("", section["effects"]))
    off = {(row["neurons"], row["facts"]): percent(row["change_ratio"]) for row in section["effects"]["off"]}
    _say(
        f"Turning off a fact's own neurons changes its probability by {off['found', 'own']}, and that of a fact of "
        f"another relation by {off['found', 'other']}. As many random neurons change the fact itself by "
        f"{off['random', 'own']}, as many of the most active ones by {off['activation', 'own']}."
    )


def _seconds(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    _head("Next")
    model = document["model"]["name"]
    for line in (
        f"kn-lens find --model {model} --relation P36 --out neurons.json",
        f"kn-lens intervene --model {model} --relation P36 --neurons neurons.json",
        *([f"kn-lens demo --model {model}-plain"] if document["model"]["constructed"] else []),
        "kn-lens models    (what else --model takes)",
    ):
        _say(f"  {line}")
    _say(f"Done in {section['total']:.0f} s.")


def _head(text: str) -> None:
    out.print()
    out.print(Text(text, style="bold"))


def _say(text: str) -> None:
    out.print(Text(text), width=min(out.width, WIDTH))


def _show(shown: Table) -> None:
    out.print(shown)


_SECTIONS = {
    "model": _model,
    "question": _question,
    "neurons": _neurons,
    "changed": _changed,
    "specificity": _specificity,
    "seconds": _seconds,
}
