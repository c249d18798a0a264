"""``kn-lens demo``: the main job from end to end, on a model and facts that come with the package."""

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens.cli import _options as options
from kn_lens.cli._run import ask, attributed, described, effect_records, load, most_active
from kn_lens.cli._story import tell
from kn_lens.cli._terminal import print_json, working
from kn_lens.cli.models import embedded
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    from kn_lens.attribution import Attribution
    from kn_lens.neuron_sets import NeuronSet
    from kn_lens.prompts import PromptBatch

SCOPES = ("trained", "held-out")
FACTS_PER_RELATION = 5
WORDINGS = 10
"""Of each fact in the sample of all relations: about as many as the paper's facts have (9.14 on average)."""
SEED = 0
INVERSE = {"P36": "P1376", "P1376": "P36"}


def demo(
    model: options.Model = "world-bert",
    fact: Annotated[str, typer.Option(metavar="SUBJECT/RELATION", help="Which of the embedded facts.")] = "Ireland/P36",
    json: options.Json = False,
) -> None:
    """Find the knowledge neurons of a real fact, turn them off and up, rewrite them, and look at what other facts do.

    Neurons are found with the trained paraphrases alone; the held-out ones test them. Under a minute on two cores.
    """
    document: dict[str, Any] = {"command": "demo"}
    for name, section in story(model, fact):
        document[name] = section
        if not json:
            tell(name, document)
    if json:
        print_json(document)


def story(model_name: str, fact_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the results, section by section, as they are known."""
    start = time.perf_counter()
    trained, held_out = FactSet.world("trained"), FactSet.world("held_out")
    fact = _named(trained, fact_name)
    model = load(model_name, None, "float32")
    prompts = ask(model, [fact], leave_out=False)
    new_prompts = ask(model, [held_out[trained.facts.index(fact)]], leave_out=False)
    both = [prompts, new_prompts]
    constructed = {one["name"]: one["constructed"] for one in embedded()}.get(model_name)  # None: not an embedded one
    size = {"n_facts": len(trained), "n_relations": len(trained.relations)}
    yield "model", {**described(model), "constructed": constructed, **size}
    before = [{"templates": scope, **_answers(model, batch)} for scope, batch in zip(SCOPES, both, strict=True)]
    asked = {"subject": fact.subject, "relation": fact.relation, "object": fact.object}
    yield "question", {"fact": asked, "answers": before}

    (attr,) = attributed(model, prompts, "Attributing one fact")
    found, evidence = _carriers(attr, fact)
    yield "neurons", evidence
    conditions = list(_conditions(model, both, fact, found))
    after = [{"templates": scope, **_answers(model, batch)} for scope, batch in zip(SCOPES, both, strict=True)]
    yield "changed", {"conditions": conditions, "restored": after == before}
    specificity, sample, active = _specificity(model, trained)
    yield "specificity", specificity
    yield "updated", _updated(model, both, fact, found, held_out)
    yield "erased", _erased(model, fact, sample, active, held_out)
    yield "seconds", {"total": time.perf_counter() - start}


def _named(facts: FactSet, name: str) -> Fact:
    subject, slash, relation = name.rpartition("/")
    if not slash:
        raise ArgumentError(f"--fact {name}: expected SUBJECT/RELATION, such as Ireland/P36.")
    return facts.of(relation).find(subject)


def _answers(model: Any, prompts: "PromptBatch") -> dict[str, Any]:
    """Return what the model says to the first prompt, in the place of the answer's first token."""
    from kn_lens.prompts import predict

    top = predict(model, prompts.select([0]), k=4)
    top = top[top.answer_token == 0]
    return {
        "text": prompts.text[0],
        "tokens": [token.strip() for token in top.token],
        "probabilities": list(top.probability),
        "n_answer_tokens": prompts.rows_per_prompt[0].item(),
    }


def _carriers(attr: "Attribution", fact: Fact) -> "tuple[NeuronSet, dict[str, Any]]":
    """Refine the fact's neurons, and return with them how sure each is."""
    from kn_lens.neurons import coarse, refine

    found = refine(attr)[fact]
    in_coarse = coarse(attr)
    clean = attr.clean.mean().item()
    return found, {
        "n_prompts": len(attr.prompts),
        "mean_probability": clean,
        "neurons": [
            {
                "layer": neuron.layer,
                "index": neuron.index,
                "n_prompts": int(in_coarse[:, neuron.layer, neuron.index].sum()),
                "mean_score": attr.scores[:, neuron.layer, neuron.index].mean().item(),
            }
            for neuron in found
        ],
        "n_candidates": attr.scores[0].numel(),
        "largest_gap": attr.completeness_gap.abs().max().item(),
        "mean_points": attr.n_points.double().mean().item(),
        "n_pairs": attr.n_points.numel(),
        "n_unconverged": len(attr.unconverged),
    }


def _conditions(model: Any, batches: "list[PromptBatch]", fact: Fact, found: "NeuronSet") -> Iterator[dict[str, Any]]:
    """Measure the fact unaltered, with its neurons off and doubled, and with control neurons off."""
    from kn_lens.effects import measure
    from kn_lens.interventions import Amplify, Suppress
    from kn_lens.neuron_sets import NeuronSet
    from kn_lens.neurons import random_neurons

    active = most_active(model, batches[0], {fact: found})[fact]
    interventions = {
        "unchanged": Suppress(NeuronSet()),
        "knowledge neurons off": Suppress(found),
        "knowledge neurons x2": Amplify(found, factor=2.0),
        "random off": Suppress(random_neurons(found, model, seed=SEED)),
        "most active off": Suppress(active),
    }
    for name, intervention in interventions.items():
        scopes = []
        for scope, batch in zip(SCOPES, batches, strict=True):
            effect = measure(model, batch, intervention)
            scopes.append(
                {
                    "templates": scope,
                    "n_prompts": len(effect),
                    "probability": float(effect.after.mean()),
                    "n_right": int((effect.rank_after == 0).sum()),
                    "most_frequent_answer": Counter(effect.top_after).most_common(1)[0][0],
                }
            )
        yield {"condition": name, "n_neurons": len(intervention.neurons), "measured": scopes}


def _first_wordings(prompts: "PromptBatch", n: int) -> "PromptBatch":
    """Return the first ``n`` prompts of each fact."""
    seen: Counter[int] = Counter()
    kept = []
    for i, fact in enumerate(prompts.fact_index.tolist()):
        if seen[fact] < n:
            kept.append(i)
        seen[fact] += 1
    return prompts.select(kept)


def _specificity(model: Any, facts: FactSet) -> "tuple[dict[str, Any], dict[Fact, NeuronSet], dict[Fact, NeuronSet]]":
    """Measure a sample of all relations beside controls, each fact and one of another relation.

    Returns what to tell, and each fact's neurons, found and most active.
    """
    from kn_lens.effects import controlled_effects
    from kn_lens.interventions import Amplify, Suppress
    from kn_lens.neurons import refine

    sample = FactSet(
        fact for relation in facts.relations for fact in facts.of(relation).sample(FACTS_PER_RELATION, seed=SEED)
    )
    prompts = _first_wordings(ask(model, sample, leave_out=True), WORDINGS)
    found: dict[Fact, NeuronSet] = {}
    n_unconverged = n_pairs = 0
    for attr in attributed(model, prompts, f"Attributing {len(sample)} facts of all relations"):
        found |= refine(attr)
        n_unconverged += len(attr.unconverged)
        n_pairs += attr.n_points.numel()
    active = most_active(model, prompts, found)
    interventions: dict[str, Any] = {"off": Suppress, "x2": partial(Amplify, factor=2.0)}
    effects = {}
    for label, intervene in interventions.items():
        with working(f"Neurons {label}", unit="prompts") as show:
            measured = controlled_effects(model, prompts, found, active, intervene=intervene, seed=SEED, progress=show)
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


def _updated(
    model: Any, batches: "list[PromptBatch]", fact: Fact, found: "NeuronSet", held_out: FactSet
) -> dict[str, Any]:
    """Give the fact another answer, ask for it in all ways and for the other facts of its relation, and undo that."""
    import torch

    from kn_lens._original import token_embeddings
    from kn_lens.edit_effects import update_effects
    from kn_lens.edit_questions import inverse_questions, reworded
    from kn_lens.edits import update_fact
    from kn_lens.hosts import host_of

    if not found:
        return {"n_neurons": 0}
    new = next(other.object for other in held_out.of(fact.relation) if other.object != fact.object)
    updates = {fact: new}
    before = _answers(model, batches[1])
    edit = update_fact(model, fact, new, found, allow_unknown=True)
    with edit.applied(model):
        during = _answers(model, batches[1])
    after = _answers(model, batches[1])
    questions = {"held out": reworded(held_out, updates), "inverse": inverse_questions(held_out, updates, INVERSE)}
    active = most_active(model, batches[0], {fact: found})
    others = _first_wordings(ask(model, held_out.of(fact.relation), leave_out=True), 1)
    with working("Updating one fact", unit="prompts") as show:
        effects = update_effects(
            model, updates, {fact: found}, active, questions=questions, others=others, seed=SEED, progress=show
        )
    new_tokens = torch.tensor(edit.why[0]["new_tokens"])
    read_off = host_of(model).unembed(token_embeddings(host_of(model), new_tokens))
    own = read_off.gather(1, new_tokens[:, None].to(read_off.device))
    return {
        "new_object": new,
        "lambdas": edit.why[0]["lambdas"],
        "n_negative": edit.why[0]["n_negative"],
        "n_neurons": len(edit.neurons),
        "effects": effects.to_dict("records"),
        "embedding_rank": int((read_off > own).sum(1).max()),
        "during": during,
        "after": after,
        "restored": after == before,
    }


def _erased(
    model: Any, fact: Fact, found: "dict[Fact, NeuronSet]", active: "dict[Fact, NeuronSet]", held_out: FactSet
) -> dict[str, Any]:
    """Erase the fact's relation, known by the facts in the sample, and ask for all facts in a held-out wording."""
    from kn_lens.edit_effects import erase_effects
    from kn_lens.edit_tables import edit_table

    members = {other: neurons for other, neurons in found.items() if other.relation == fact.relation}
    if not any(members.values()):
        return {"n_neurons": 0}
    prompts = _first_wordings(ask(model, held_out, leave_out=True), 1)
    with working("Erasing one relation", unit="prompts") as show:
        effects = erase_effects(model, prompts, members, active, seed=SEED, progress=show)
    return {
        "relation": fact.relation,
        "n_facts": len(members),
        "n_neurons": int(effects.n_neurons[effects.neurons == "found"].iloc[0]),
        "n_measured": effects.groupby("asked").measured.nunique().to_dict(),
        "effects": edit_table(effects, seed=SEED).to_dict("records"),
    }
