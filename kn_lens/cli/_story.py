"""The demo in words and tables: what was found, how sure it is, and what it does and does not show."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from kn_lens._shown import escaped
from kn_lens.cli._tables import CONTROLS, effects_table, ends, neuron_names, number, percent, table
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
_AS_BEFORE = {True: "as before, bit for bit.", False: "otherwise than before: please report this."}
_ASKED = {
    "own wording": "trained",
    "held out": "held-out",
    "inverse": "the other way round",
    "same relation": "other facts",
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
        "neurons. Without the hooks, the model answers " + _AS_BEFORE[section["restored"]]
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


def _updated(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    fact = document["question"]["fact"]
    if not section["n_neurons"]:
        return
    new, n = section["new_object"], section["n_neurons"]
    away, to = section["lambdas"]
    turned = ""
    if section["n_negative"]:
        turned = f" (the other way round in {section['n_negative']} that fire below zero)"
    _head(f"5. Rewrite the fact: {fact['subject']} -> {new}")
    _say(
        f"In the {n} rows of W_out that these neurons write with, {away:g} row length of the direction of "
        f"{fact['object']}'s embedding is taken away, and {to:g} of {new}'s are added{turned}. Prompts with the old "
        "answer and with the new one on top; other facts of the relation are asked for once, in a held-out wording:"
    )
    numbers = ("n", "prompts", "old", "new")
    shown = table("", "neurons", "asked", *numbers, "says", right=numbers)
    last = None
    for row in [row for row in section["effects"] if row["asked"] in _ASKED]:
        if last not in (None, row["neurons"]):
            shown.add_section()
        counts = (number(row["n_prompts"] * row[name], ".0f") for name in ("right_after", "new_right_after"))
        shown.add_row(
            CONTROLS[row["neurons"]] if row["neurons"] != last else "",
            _ASKED[row["asked"]],
            str(row["n_neurons"]) if row["neurons"] != last else "",
            str(row["n_prompts"]),
            *counts,
            row["says"] if row["asked"] != "same relation" else "",
        )
        last = row["neurons"]
    _show(shown)
    _say(_verdict(section, fact))
    _say(f"{section['during']['text']}  (held-out wording)")
    for when in ("during", "after"):
        tokens = zip(section[when]["tokens"], section[when]["probabilities"], strict=True)
        said = ", ".join(f"{token} {probability:.3f}" for token, probability in tokens)
        _say(f"  {'edited' if when == 'during' else 'undone'}: {said}")
    _say("Undone, the model answers " + _AS_BEFORE[section["restored"]])


def _verdict(section: Mapping[str, Any], fact: Mapping[str, str]) -> str:
    """Say in words what the table of an update says."""
    rows = {(row["neurons"], row["asked"]): row for row in section["effects"]}
    own, held_out = rows["found", "own wording"], rows["found", "held out"]
    old, new, rank = fact["object"], section["new_object"], section["embedding_rank"]
    if held_out["new_right_after"] >= 0.5:
        text = "The new answer holds in wordings that were not used to find the neurons. "
    elif own["new_right_after"] >= 0.5:
        text = "The new answer came in the wordings that the neurons were found with, and not in the others. "
    elif held_out["right_after"] < 0.5:
        text = f"The old answer is gone, but {new} did not come. "
    else:
        text = f"The update did not take: {old} is still the answer. "
    if own["new_right_after"] < 0.5 and rank:
        text += (
            f"The embedding of {new} does not say {new} to this model's head: read off by it, {rank} other tokens come "
            "before (see docs/editing.md). "
        )
    if ("found", "inverse") in rows and held_out["new_right_after"] >= 0.5:
        there = rows["found", "inverse"]["new_right_after"] >= 0.5
        text += f"Asked the other way round, the model {'follows' if there else 'knows nothing of it'}. "
    others = rows["found", "same relation"]
    text += f"Of {others['n_prompts']} other facts of the relation, {others['lost']:.0%} lose their answer too. "
    if rows["random", "own wording"]["new_right_after"] >= 0.5:
        text += "Random neurons do the same, so that here it takes no knowledge neurons. "
    return text.rstrip()


def _erased(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    if not section["n_neurons"]:
        return
    _head(f"6. Erase a relation: {section['relation']}")
    n_own, n_other = (section["n_measured"][asked] for asked in ("same relation", "other relations"))
    _say(
        f"The rows of the {section['n_neurons']} most frequent neurons of {section['n_facts']} of its facts are set to "
        f"zero. Perplexity and accuracy of its {n_own:,} facts and of {n_other:,} others, each in a held-out wording "
        "[95% bootstrap interval]:"
    )
    numbers = ("perplexity", "growth", "right")
    shown = table("", "neurons", "facts", *numbers, right=numbers)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in section["effects"]:
        cells.setdefault((row["neurons"], row["asked"]), {})[row["measure"]] = row
    for (kind, asked), rows in cells.items():
        growth = rows["perplexity_growth"]
        shown.add_row(
            CONTROLS[kind] if asked == "same relation" else "",
            "its own" if asked == "same relation" else "others",
            f"{rows['perplexity_before']['value']:.2f} -> {rows['perplexity_after']['value']:.2f}",
            f"{percent(growth['value'])} {ends(growth, '+.0f', 100)}",
            f"{rows['accuracy_before']['value']:.0%} -> {rows['accuracy_after']['value']:.0%}",
        )
    _show(shown)


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
    out.print(escaped(text), style="bold")


def _say(text: str) -> None:
    out.print(escaped(text), width=min(out.width, WIDTH))


def _show(shown: Table) -> None:
    out.print(shown)


_SECTIONS = {
    "model": _model,
    "question": _question,
    "neurons": _neurons,
    "changed": _changed,
    "specificity": _specificity,
    "updated": _updated,
    "erased": _erased,
    "seconds": _seconds,
}
