"""What an edit does to the fact that it is about, however that is asked for, and to all others.

An update of <h, r, t> to <h, r, t'> is judged on questions that it should change, and on facts that it should not:

    changed   share of the prompts that had t on top and no longer have               (Dai et al. 2022, section 5.1)
    success   share of the prompts that have t' on top; top5, rank and mrr of t' likewise
    own and held-out wordings, inverse relation, synonyms of t'                       (Niu et al. 2024)
    perplexity = exp(mean(-log P(answer))) and accuracy of other facts: of the relation, of other relations, about the
    same subject, with the same answer, and with the new one

An erased relation is judged by perplexity and accuracy of its own facts and of all others (section 5.2). Random neurons
of the same layers and the most active ones go through the same edit, as controls. Edits are written to the weights for
the time of a reading and undone exactly. ``edit_table`` sums up, with bootstrap intervals.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from kn_lens._budget import Budget
from kn_lens._exclusive import exclusive
from kn_lens._reading import Progress, Reading, Ticks, read
from kn_lens._refining import prompts_by_fact
from kn_lens._request import Preset, check_share
from kn_lens.edit_forms import Scaling
from kn_lens.edit_questions import (
    MAX_DISTURBED,
    OTHER_RELATIONS,
    SAME_RELATION,
    Asked,
    Question,
    Questions,
    checked_groups,
    disturbed_share,
    prompts_in_common,
)
from kn_lens.edits import Update, erase_neurons, erase_relation, made
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Host, host_of
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import random_neurons
from kn_lens.overlap import relation_neurons
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd


@exclusive
def update_effects(
    model: Any,
    new_objects: Mapping[Fact, str],
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    questions: Mapping[str, Questions] | None = None,
    others: PromptBatch | None = None,
    doses: Sequence[float] = (1.0,),
    lambdas: tuple[float, float] | None = None,
    preset: Preset | None = None,
    scaling: Scaling = "norm",
    signed: bool = True,
    max_disturbed: float = MAX_DISTURBED,
    seed: int = 0,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Update facts one at a time, each on its own neurons and on control neurons, and see what became of all answers.

    Facts that the model does not know are not refused: ``right_before`` shows them.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        new_objects: the facts to update, with their templates, and what the object of each is to become.
        neurons_by_fact: the neurons to rewrite, for these facts at least. All of them are: to leave out those of the
            whole relation, as the paper does, pass what ``update_fact(..., neurons_by_fact=...)`` leaves of them.
        activation_neurons: as many neurons of highest activation, from ``kn_lens.activation_neurons``; None leaves this
            control out.
        questions: by name, what else the updates should change: see ``reworded`` and ``inverse_questions``; synonyms
            are ``{"synonym": {fact: Question(fact, "Edo")}}``.
        others: prompts of facts that should stay as they are. Those of the updated fact itself are not looked at.
        doses: factors on both lambdas.
        lambdas: see ``update_fact``.
        preset: see ``update_fact``.
        scaling: see ``update_fact``.
        signed: see ``update_fact``; the control neurons' changes have the signs of their own activations.
        max_disturbed: an update ``disturbs`` when it takes away more than this share of the others' right answers.
        seed: draws the random neurons, as many in each layer as are updated. Those of a fact do not depend on which
            other facts are measured.
        tokenizer: instead of the model's own.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: called with (done, total), counted in rows.

    Returns:
        A table with a row for each fact, ``neurons`` (``found``, ``activation``, ``random``), ``dose`` and ``asked``:
        ``own wording``, the names of ``questions``, and of the facts in ``others`` ``same relation``,
        ``other relations``, ``same subject`` (in other relations), ``same answer`` and ``new answer`` (the answer that
        is the fact's old or new one), where there are any. Its columns, means over ``n_prompts`` prompts:

        - ``relation``, ``subject``, ``object``, ``key``, ``new_object`` of the updated fact; ``n_neurons``.
        - ``right_before``, ``right_after``: share with the answer that the question has now on top; ``lost``: share
          that had it and no longer have. ``nll_before``, ``nll_after``: -log P(it), nats.
        - of the answer that the question should get, NaN for ``others``: ``new_right_before``, ``new_right_after``;
          ``new_top5_...``: share that has it among the five most probable; ``new_rank_...``: zero-based;
          ``new_mrr_...``: mean of 1 / (1 + rank); ``new_nll_...``. Of an answer of several tokens the worst rank of
          theirs counts.
        - ``says``: the most frequent answer after the update.

        And of the update as a whole, the same in all its rows: ``disturbed``, of the prompts of ``others`` that had
        their answer on top the share that no longer have (NaN where there are none), and ``disturbs``, whether that is
        more than ``max_disturbed``: the model is then another one, and not only about this fact.

        Cost: a forward pass for each row of all prompts, and for the signs one more for each row of own wordings; and
        for each fact, kind of neurons and dose one for each row of its questions, asked for both answers, and of
        ``others``.

    Raises:
        ArgumentError: no facts, a fact without neurons or activation neurons, a question that is not about an updated
            fact, has the name of another group or is to keep its answer; numbers out of range.
        EditError: an update that cannot be made, see ``update_fact``.
        PromptError: a question that cannot be asked of the model.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> found = kn.refine(kn.attribute(model, kn.make_prompts(model, fact)))
        >>> effects = kn.update_effects(model, {fact: "Rome"}, found)
        >>> effects[["neurons", "asked", "right_before", "new_right_after", "says"]].values.tolist()
        [['found', 'own wording', 1.0, 1.0, 'Rome'], ['random', 'own wording', 1.0, 0.0, 'Dublin']]
    """
    host = checked_host(model)
    budget = Budget.of(host, memory_budget)
    check_facts(new_objects, neurons_by_fact, "neurons")
    if activation_neurons is not None:
        check_facts(new_objects, activation_neurons, "activation neurons")
    if not len(doses):
        raise ArgumentError("doses is empty; expected at least one factor, such as 1.0.")
    check_share("max_disturbed", max_disturbed)
    form: dict[str, Any] = {"lambdas": lambdas, "preset": preset, "scaling": scaling, "signed": signed}
    trials = {}
    for fact in new_objects:
        controls = _controls(host, neurons_by_fact[fact], fact.key, seed, (activation_neurons or {}).get(fact))
        sets = {"found": neurons_by_fact[fact], **controls}
        trials[fact] = [Trial({"neurons": kind}, neurons, form) for kind, neurons in sets.items()]
    return tried(
        model, host, budget, new_objects, trials, questions or {}, others, doses, max_disturbed, tokenizer, progress
    )


class Trial(NamedTuple):
    """An update to try.

    Attributes:
        about: what the rows about it say of it.
        neurons: whose rows are changed.
        form: ``lambdas``, ``preset``, ``scaling`` and ``signed`` of ``update_fact``.
    """

    about: Mapping[str, Any]
    neurons: NeuronSet
    form: Mapping[str, Any]


def tried(
    model: Any,
    host: Host,
    budget: Budget,
    new_objects: Mapping[Fact, str],
    trials: Mapping[Fact, Sequence[Trial]],
    questions: Mapping[str, Questions],
    others: PromptBatch | None,
    doses: Sequence[float],
    max_disturbed: float,
    tokenizer: Any,
    progress: Progress | None,
) -> "pd.DataFrame":
    """Return what each of some updates of each fact does; see ``update_effects`` for the table, its cost and errors."""
    import pandas as pd

    groups = checked_groups({fact: Question(fact, new) for fact, new in new_objects.items()}, questions)
    updates = {
        fact: [Update.of(model, fact, new_objects[fact], one.neurons, tokenizer=tokenizer, **one.form) for one in mine]
        for fact, mine in trials.items()
    }
    for update in chain.from_iterable(updates.values()):
        for dose in doses:
            update.unsigned.scaled(dose)  # refuses a dose that gives no rows
    if others is not None:
        others.check_for(host)
    asked = {name: Asked.of(model, host, name, group, tokenizer) for name, group in groups.items()}

    n_others = 0 if others is None else others.n_rows
    n_clean = n_others + sum(batch.n_rows for group in asked.values() for batch in group.batches)
    n_asked = {fact: sum(group.n_rows(fact) for group in asked.values()) for fact in new_objects}
    n_tried = sum(len(doses) * len(mine) * (n_asked[fact] + n_others) for fact, mine in trials.items())
    tick = Ticks(progress, n_clean + sum(mine[0].prompts.n_rows for mine in updates.values()) + n_tried)
    text_by = host.tokenizer if tokenizer is None else tokenizer
    clean = {name: [read(host, batch, [], budget, tick) for batch in group.batches] for name, group in asked.items()}
    others_clean = None if others is None else read(host, others, [], budget, tick)
    records = []
    for fact, new in new_objects.items():
        edits, _ = made(updates[fact], budget, tick)
        for dose, (one, edit) in product(doses, list(zip(trials[fact], edits, strict=True))):
            about = {name: getattr(fact, name) for name in ("relation", "subject", "object", "key")}
            about |= {"new_object": new, **one.about, "n_neurons": len(edit.neurons), "dose": dose}
            rows = []
            with edit.scaled(dose).applied(model):
                for name, group in asked.items():
                    if fact in group.questions:
                        now, then = (
                            (_part(before, chosen.cpu().numpy()), read(host, batch.select(chosen), [], budget, tick))
                            for before, (batch, chosen) in zip(clean[name], group.of_update(fact), strict=True)
                        )
                        says = _most_frequent(now[1].top_text(text_by))
                        rows.append({**about, "asked": name, **_of_old(*now), **_of_new(*then), "says": says})
                if others is not None and others_clean is not None:
                    after = read(host, others, [], budget, tick)
                    for scope, chosen in prompts_in_common(others, fact, new).items():
                        pair = _part(others_clean, chosen), _part(after, chosen)
                        rows.append({**about, "asked": scope, **_of_old(*pair)})
            disturbed = disturbed_share(rows)
            records += [{**row, "disturbed": disturbed, "disturbs": disturbed > max_disturbed} for row in rows]
    return pd.DataFrame(records)


@exclusive
def erase_effects(
    model: Any,
    prompts: PromptBatch,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    top: int | None = None,
    min_facts: int | None = None,
    value: str | int = "zero",
    seed: int = 0,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Erase relations one at a time, by their own neurons and by control neurons, and ask for all facts again.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: prompts of facts of the relations to erase, and of others.
        neurons_by_fact: the neurons found; each relation among these facts is erased.
        activation_neurons: as many neurons of highest activation for each fact: of each relation the most frequent are
            erased, as many as of the found ones, or all where there are fewer. None leaves this control out.
        top: see ``erase_relation``.
        min_facts: see ``erase_relation``.
        value: see ``erase_neurons``.
        seed: draws the random neurons, as many in each layer as are erased.
        tokenizer: instead of the model's own, to look ``value`` up.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: called with (done, total), counted in rows.

    Returns:
        A table with a row for each erased ``relation``, ``neurons`` (``found``, ``activation``, ``random``) and fact of
        ``prompts``: ``asked`` (``same relation`` or ``other relations``), ``measured`` (the fact's key),
        ``measured_relation``, ``n_neurons``; and over its ``n_prompts`` prompts ``right_before``, ``right_after``,
        ``lost``, ``nll_before``, ``nll_after``, as of ``update_effects``. Cost: a forward pass for each row of
        ``prompts``, and for each relation and kind of neurons once more.

    Raises:
        ArgumentError: no facts, a relation without prompts or prompts of it alone, a fact without activation neurons;
            numbers out of range.
        EditError: nothing to erase; see ``erase_relation``.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> facts = kn.FactSet.world("held_out")
        >>> prompts = kn.make_prompts(model, [facts.of("P36")[0], facts.of("P30")[0]])
        >>> found = {facts.of("P36")[0]: kn.NeuronSet([(3, 5), (3, 17)])}
        >>> effects = kn.erase_effects(model, prompts, found)
        >>> effects[["neurons", "asked", "measured"]].values.tolist()[:2]
        [['found', 'same relation', 'P36/China/Beijing'], ['found', 'other relations', 'P30/China/Asia']]
    """
    import pandas as pd

    host = checked_host(model)
    budget = Budget.of(host, memory_budget)
    prompts.check_for(host)
    prompts_of = {fact: chosen.cpu().numpy() for fact, chosen in prompts_by_fact(prompts).items()}
    if activation_neurons is not None:
        check_facts(neurons_by_fact, activation_neurons, "activation neurons")
    planned = []
    for relation, found_of in _by_relation(neurons_by_fact, prompts_of).items():
        found = erase_relation(model, found_of, top=top, min_facts=min_facts, value=value, tokenizer=tokenizer)
        active = None
        if activation_neurons is not None:
            sets = {fact: activation_neurons[fact] for fact in found_of}
            active = relation_neurons(sets, top=len(found.neurons))[relation]
        controls = _controls(host, found.neurons, relation, seed, active)
        planned.append((relation, "found", found))
        planned += [
            (relation, kind, erase_neurons(model, neurons, value=value, tokenizer=tokenizer))
            for kind, neurons in controls.items()
        ]

    tick = Ticks(progress, prompts.n_rows * (1 + len(planned)))
    before = read(host, prompts, [], budget, tick)
    records = []
    for relation, kind, edit in planned:
        with edit.applied(model):
            after = read(host, prompts, [], budget, tick)
        for fact, chosen in prompts_of.items():
            records.append(
                {
                    "relation": relation,
                    "neurons": kind,
                    "n_neurons": len(edit.neurons),
                    "asked": SAME_RELATION if fact.relation == relation else OTHER_RELATIONS,
                    "measured": fact.key,
                    "measured_relation": fact.relation,
                    **_of_old(_part(before, chosen), _part(after, chosen)),
                }
            )
    return pd.DataFrame(records)


# --- reading ----------------------------------------------------------------------------------------------


def _part(reading: Reading, chosen: Int[np.ndarray, " some"]) -> Reading:
    top = [reading.top[i] for i in chosen.tolist()]
    return Reading(log_prob=reading.log_prob[chosen], rank=reading.rank[chosen], top=top)


def _of_old(before: Reading, after: Reading) -> dict[str, float]:
    """Return what became of the answers that the questions had."""
    was, still = before.rank == 0, after.rank == 0
    return {
        "n_prompts": len(was),
        "right_before": float(was.mean()),
        "right_after": float(still.mean()),
        "lost": float((was & ~still).mean()),
        "nll_before": float(-before.log_prob.mean()),
        "nll_after": float(-after.log_prob.mean()),
    }


def _of_new(before: Reading, after: Reading) -> dict[str, float]:
    """Return how near the answers came that the questions should get."""
    columns = {}
    for when, reading in (("before", before), ("after", after)):
        columns[f"new_right_{when}"] = float((reading.rank == 0).mean())
        columns[f"new_top5_{when}"] = float((reading.rank < 5).mean())
        columns[f"new_rank_{when}"] = float(reading.rank.mean())
        columns[f"new_mrr_{when}"] = float((1 / (1 + reading.rank)).mean())
        columns[f"new_nll_{when}"] = float(-reading.log_prob.mean())
    return columns


def _most_frequent(texts: Sequence[str]) -> str:
    return max(dict.fromkeys(texts), key=texts.count)


# --- controls and checks ----------------------------------------------------------------------------------


def _controls(host: Host, found: NeuronSet, name: str, seed: int, active: NeuronSet | None) -> dict[str, NeuronSet]:
    drawn = random_neurons(found, host, [seed, zlib.crc32(name.encode())])
    return ({} if active is None else {"activation": active}) | {"random": drawn}


def checked_host(model: Any) -> Host:
    """Return what runs the model, whose weights are numbers."""
    host = host_of(model)
    host.check_finite()
    return host


def check_facts(facts: Iterable[Fact], sets: Mapping[Fact, NeuronSet], what: str) -> None:
    """Raise for no facts, or one without a set."""
    facts = list(facts)
    if not facts:
        raise ArgumentError("There are no facts to edit; expected at least one.")
    for fact in facts:
        if fact not in sets:
            near = did_you_mean(fact.key, (other.key for other in sets))
            raise ArgumentError(f"{fact.key} has no {what}; expected a set for every fact.{near}")


def _by_relation(
    neurons_by_fact: Mapping[Fact, NeuronSet], prompts_of: Mapping[Fact, Any]
) -> dict[str, dict[Fact, NeuronSet]]:
    """Return the sets of each relation, once there are prompts of it and of others."""
    groups: dict[str, dict[Fact, NeuronSet]] = {}
    for fact, found in neurons_by_fact.items():
        groups.setdefault(fact.relation, {})[fact] = found
    if not groups:
        raise ArgumentError("There are no neurons of any relation to erase; expected at least one fact.")
    asked = {fact.relation for fact in prompts_of}
    for relation in groups:
        if relation not in asked or len(asked) == 1:
            raise ArgumentError(
                f"The prompts are of {', '.join(sorted(asked))}; expected some of {relation}, which is to be erased, "
                f"and some of other relations.{did_you_mean(relation, asked - {relation})}"
            )
    return groups
