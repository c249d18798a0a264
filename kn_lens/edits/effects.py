"""Effects of edits on the edited facts, in their own and in other wordings, and on all other facts.

An update of <h, r, t> to <h, r, t'> is measured on questions that it should change, and on facts that it should not:

    changed   share of the prompts with t on top before and not after                 (Dai et al. 2022, section 5.1)
    success   share of the prompts with t' on top; top5, rank and mrr of t' likewise
    own and held-out wordings, inverse relation, synonyms of t'                       (Niu et al. 2024)
    perplexity = exp(mean(-log P(answer))) and accuracy of other facts: of the relation, of other relations, about the
    same subject, with the same answer, and with the new one

An erased relation is measured by perplexity and accuracy of its own facts and of all others (section 5.2). Random
neurons of the same layers and the most active neurons go through the same edit, as controls. Edits are written to the
weights while answers are scored, and undone exactly. ``edit_table`` summarises effects, with bootstrap intervals.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from kn_lens._core import defaults
from kn_lens._core.checks import check_share
from kn_lens._core.names import PositionName, Scaling, UpdateForm
from kn_lens._core.progress import draws_progress
from kn_lens.attribution import Preset, check_numbers
from kn_lens.edits.arguments import (
    check_each_has_neurons,
    check_new_objects,
)
from kn_lens.edits.erasures import erase_neurons, erase_relation
from kn_lens.edits.prompt_edits import score_under_edits
from kn_lens.edits.questions import (
    OTHER_RELATIONS,
    OWN,
    SAME_RELATION,
    Question,
    QuestionPrompts,
    Questions,
    checked_groups,
    group_other_facts,
)
from kn_lens.edits.scored_questions import ScoredQuestions, current_answer_columns, disturbed_share
from kn_lens.edits.updates import FactUpdate, recorder_of, resolve_form, with_signs
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, HookedModel, Host, checked_host, exclusive
from kn_lens.interventions import Progress, Ticks, score_answers
from kn_lens.neurons import (
    NeuronSet,
    check_neurons_by_fact,
    prompts_by_fact,
    random_neurons,
    relation_neurons,
)
from kn_lens.prompts import PromptBatch, check_prompts, host_for

if TYPE_CHECKING:
    import pandas as pd

MAX_DISTURBED = 0.1
"""An update disturbs other facts if it takes away more than this share of their right answers. The value is a choice,
halfway between random rows in the embedded models (3%) and edits that leave little of what a model knows."""

ROWS_AT_ONCE = 1 << 16
"""Rows of trials whose scores are in memory together: enough to fill passes, whatever the number of trials."""


# --- updates ----------------------------------------------------------------------------------------------


@exclusive
@draws_progress("Measuring updates", "rows")
def update_effects(
    model: HookedModel | Host,
    new_objects: Mapping[Fact, str],
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    questions: Mapping[str, Questions] | None = None,
    others: PromptBatch | None = None,
    doses: Sequence[float] = (1.0,),
    lambdas: tuple[float, float] | None = None,
    preset: Preset | None = None,
    scaling: Scaling = defaults.SCALING,
    signed: bool = defaults.SIGNED,
    max_disturbed: float = MAX_DISTURBED,
    position: PositionName = "read",
    seed: int = 0,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> "pd.DataFrame":
    """Measure the effects of updates, one fact at a time, with the fact's own neurons and with control neurons.

    Facts that the model does not know are measured too: ``right_before`` tells them apart.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        new_objects: the facts to update, with their templates, and the new object of each.
        neurons_by_fact: the neurons of at least these facts. All rows of a fact's neurons are rewritten. The paper
            leaves out those of the whole relation: ``update_fact(..., neurons_by_fact=...).neurons`` are the others.
        activation_neurons: as many neurons of highest activation, from ``kn_lens.activation_neurons``; None leaves this
            control out.
        questions: groups of further questions that the updates should change, by name: see ``reworded`` and
            ``inverse_questions``; synonyms are ``{"synonym": {fact: Question(fact, "Edo")}}``.
        others: prompts of facts that should stay the same. Those of the updated fact itself are left out.
        doses: factors on both lambdas.
        lambdas: see ``update_fact``.
        preset: see ``update_fact``.
        scaling: see ``update_fact``.
        signed: see ``update_fact``. The rows of control neurons have the signs of their own activations.
        max_disturbed: an update ``disturbs`` if it takes away more than this share of the others' right answers.
        position: see ``update_fact``; the same for all neurons, those of the controls included.
        seed: seed of the random neurons, as many in each layer as are updated. Those of a fact do not depend on which
            other facts are measured.
        tokenizer: the tokenizer to use instead of the model's own.
        memory_budget: bytes of memory for passes; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            rows.

    Returns:
        A table with a row for each fact, ``neuron_set`` (``found``, ``activation``, ``random``), ``dose`` and
        ``question``. The last is ``own wording``, a name of ``questions``, or a group of the facts in ``others``, where
        it has any: ``same relation``, ``other relations``, ``same subject`` (in other relations), ``same answer`` or
        ``new answer`` (with the fact's old or new answer). The columns, means over ``n_prompts`` prompts:

        - ``relation``, ``subject``, ``object``, ``key``, ``new_object`` of the updated fact; ``n_neurons``.
        - of the current answer to the question: ``right_before``, ``right_after``: share with it on top; ``lost``:
          share with it on top before and not after; ``nll_before``, ``nll_after``: -log P, in nats.
        - of the new answer to the question, NaN for ``others``: ``new_right_before``, ``new_right_after``: share with
          it on top; ``new_top5_...``: share with it among the five most probable; ``new_rank_...``: zero-based;
          ``new_mrr_...``: mean of 1 / (1 + rank); ``new_nll_...``. The rank of an answer of several tokens is the worst
          rank of its tokens.
        - ``says``: the most frequent answer after the update.

        Two columns describe the update as a whole, the same in all its rows. ``disturbed`` is the share of the right
        answers to ``others`` that it takes away (NaN without right answers). ``disturbs`` is whether that is more than
        ``max_disturbed``: the update then changes the model at large, not this fact.

        Cost: a forward pass for each row of all prompts; and for each fact, set of neurons and dose, one for each row
        of its questions, with both answers, and of ``others``. Facts, sets and doses share passes.

    Raises:
        ArgumentError: no facts, a fact without neurons or activation neurons, a question about a fact that is not
            updated, with the name of another group or with an answer that does not change; numbers out of range; a
            wrong kind of argument.
        EditError: an update that cannot be made, see ``update_fact``.
        PromptError: a question that gives no prompt for the model.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> found = kn.refine(kn.attribute(model, kn.make_prompts(model, fact)))
        >>> effects = kn.update_effects(model, {fact: "Rome"}, found)
        >>> effects[["neuron_set", "question", "right_before", "new_right_after", "says"]].values.tolist()
        [['found', 'own wording', 1.0, 1.0, 'Rome'], ['random', 'own wording', 1.0, 0.0, 'Dublin']]
    """
    host = checked_host(host_for(model, others))
    budget = Budget.of(host, memory_budget)
    check_new_objects(new_objects)
    check_each_has_neurons(new_objects, neurons_by_fact, "neurons_by_fact", "neurons")
    if activation_neurons is not None:
        check_each_has_neurons(
            new_objects,
            activation_neurons,
            "activation_neurons",
            "activation neurons",
        )
    check_share("max_disturbed", max_disturbed)
    form = resolve_form(lambdas, preset, scaling, signed)
    trials = {}
    for fact in new_objects:
        found = neurons_by_fact[fact]
        active = None if activation_neurons is None else activation_neurons[fact]
        trials[fact] = [UpdateTrial({"neuron_set": "found"}, found, form)]
        for name, neurons in _controls(host, found, active, fact.key, seed).items():
            trials[fact].append(UpdateTrial({"neuron_set": name}, neurons, form))
    measurement = UpdateMeasurement(
        questions={} if questions is None else questions,
        others=others,
        doses=doses,
        max_disturbed=max_disturbed,
        tokenizer=tokenizer,
        budget=budget,
        progress=progress,
        position=position,
    )
    return measure_updates(host, new_objects, trials, measurement)


class UpdateTrial(NamedTuple):
    """One way to update a fact.

    Attributes:
        labels: columns of the rows about this trial.
        neurons: the neurons whose rows change.
        form: lambdas, scaling and whether signs count.
    """

    labels: Mapping[str, Any]
    neurons: NeuronSet
    form: UpdateForm


@dataclass(frozen=True, kw_only=True)
class UpdateMeasurement:
    """What is measured in each trial of an update.

    Attributes:
        questions: see ``update_effects``.
        others: see ``update_effects``.
        budget: the memory for passes.
        doses: see ``update_effects``.
        max_disturbed: see ``update_effects``.
        tokenizer: see ``update_effects``.
        progress: see ``update_effects``.
        position: see ``update_effects``.
    """

    questions: Mapping[str, Questions]
    others: PromptBatch | None
    budget: Budget
    doses: Sequence[float] = (1.0,)
    max_disturbed: float = MAX_DISTURBED
    tokenizer: Any = None
    progress: Progress | bool | None = None
    position: PositionName = "read"


def measure_updates(
    host: Host,
    new_objects: Mapping[Fact, str],
    trials: Mapping[Fact, Sequence[UpdateTrial]],
    measurement: UpdateMeasurement,
) -> "pd.DataFrame":
    """Return the effects of trials of updates; see ``update_effects`` for the table, its cost and errors.

    Args:
        host: the model.
        new_objects: the facts to update, and the new object of each.
        trials: for each of these facts at least one trial.
        measurement: what to measure in each trial.
    """
    import pandas as pd

    budget = measurement.budget
    others = measurement.others
    tokenizer = measurement.tokenizer
    doses = _checked_doses(measurement.doses)
    own_questions = {fact: Question(fact, new_object) for fact, new_object in new_objects.items()}
    groups = checked_groups(own_questions, measurement.questions)
    updates: dict[Fact, list[FactUpdate]] = {}
    for fact, new_object in new_objects.items():
        updates[fact] = []
        for trial in trials[fact]:
            update = FactUpdate.of(
                host,
                fact,
                new_object,
                trial.neurons,
                trial.form,
                tokenizer=tokenizer,
                position=measurement.position,
            )
            for dose in doses:
                update.unsigned.scaled(dose)  # raises for a dose that gives no finite rows
            updates[fact].append(update)
    if others is not None:
        check_prompts(others, "others")
        others.check_for(host)
    group_prompts: dict[str, QuestionPrompts] = {}
    for name, group in groups.items():
        group_prompts[name] = QuestionPrompts.of(host, name, group, tokenizer)

    n_other_rows = 0 if others is None else others.n_rows
    n_rows = n_other_rows
    for prompts in group_prompts.values():
        n_rows += prompts.n_rows
    rows_per_trial: dict[Fact, int] = {}
    for fact in new_objects:
        rows_per_trial[fact] = n_other_rows
        for prompts in group_prompts.values():
            rows_per_trial[fact] += prompts.n_rows_of(fact)
        n_rows += len(doses) * len(trials[fact]) * rows_per_trial[fact]
    tick = Ticks(measurement.progress, n_rows)

    if tokenizer is None:
        tokenizer = host.tokenizer
    recorder = recorder_of(updates, group_prompts[OWN].current)
    scored_groups: dict[str, ScoredQuestions] = {}
    for name, prompts in group_prompts.items():
        interventions = [recorder] if name == OWN and recorder is not None else []
        scored = ScoredQuestions.of(host, prompts, interventions, budget, tick, tokenizer)
        scored_groups[name] = scored
    own_answers = torch.from_numpy(scored_groups[OWN].current.log_prob)
    check_numbers(host, group_prompts[OWN].current, own_answers)
    others_before = None if others is None else score_answers(host, others, [], budget, tick)

    def edited_trials() -> Iterator[_EditedTrial]:
        for fact, new_object in new_objects.items():
            edits = [with_signs(update, fact, recorder) for update in updates[fact]]
            for dose in doses:
                for trial, edit in zip(trials[fact], edits, strict=True):
                    labels = {
                        "relation": fact.relation,
                        "subject": fact.subject,
                        "object": fact.object,
                        "key": fact.key,
                        "new_object": new_object,
                        **trial.labels,
                        "n_neurons": len(edit.neurons),
                        "dose": dose,
                    }
                    yield _EditedTrial(fact, new_object, edit.scaled(dose), labels)

    records = []
    for group in _groups_of_rows(edited_trials(), rows_per_trial):
        rows_of_trial: list[list[dict[str, Any]]] = [[] for _ in group]
        for name, scored in scored_groups.items():
            numbers = [number for number, trial in enumerate(group) if trial.fact in scored.prompts.questions]
            trials_of_group = [(group[number].fact, group[number].edit) for number in numbers]
            effects = scored.under_edits(host, trials_of_group, budget, tick)
            for number, row in zip(numbers, effects, strict=True):
                rows_of_trial[number].append({**group[number].labels, "question": name, **row})
        if others is not None and others_before is not None:
            every_prompt = torch.arange(len(others))
            edits = [(trial.edit, every_prompt) for trial in group]
            others_after = score_under_edits(host, others, edits, budget, tick)
            for rows, trial, after in zip(rows_of_trial, group, others_after, strict=True):
                for name, chosen in group_other_facts(others, trial.fact, trial.new_object).items():
                    row = current_answer_columns(others_before.select(chosen), after.select(chosen))
                    rows.append({**trial.labels, "question": name, **row})
        for rows in rows_of_trial:
            disturbed = disturbed_share(rows)
            disturbs = disturbed > measurement.max_disturbed
            for row in rows:
                records.append({**row, "disturbed": disturbed, "disturbs": disturbs})
    return pd.DataFrame(records)


class _EditedTrial(NamedTuple):
    """A trial with its edit.

    Attributes:
        fact: the updated fact.
        new_object: its new object.
        edit: the edit of one strength.
        labels: the columns of the table that describe the trial.
    """

    fact: Fact
    new_object: str
    edit: WeightEdit
    labels: Mapping[str, Any]


def _groups_of_rows(
    trials: Iterable[_EditedTrial],
    rows_per_trial: Mapping[Fact, int],
) -> Iterator[list[_EditedTrial]]:
    """Yield consecutive trials that run at most ``ROWS_AT_ONCE`` rows together, at least one."""
    group: list[_EditedTrial] = []
    n_rows = 0
    for trial in trials:
        n_trial_rows = rows_per_trial[trial.fact]
        if group and n_rows + n_trial_rows > ROWS_AT_ONCE:
            yield group
            group, n_rows = [], 0
        group.append(trial)
        n_rows += n_trial_rows
    if group:
        yield group


# --- erasures ---------------------------------------------------------------------------------------------


@exclusive
@draws_progress("Measuring erasures", "rows")
def erase_effects(
    model: HookedModel | Host,
    prompts: PromptBatch,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    top: int | None = None,
    min_facts: int | None = None,
    value: str | int = defaults.ERASED_VALUE,
    across_relations: bool = True,
    seed: int = 0,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> "pd.DataFrame":
    """Measure the effects of erasures on all facts, one relation at a time, with its neurons and with control neurons.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: prompts of facts of the relations to erase, and of others.
        neurons_by_fact: the neurons found. Each relation among these facts is erased.
        activation_neurons: as many neurons of highest activation for each fact. The most frequent ones of each relation
            are erased: as many as of the found neurons, or all if there are fewer. None leaves this control out.
        top: see ``erase_relation``.
        min_facts: see ``erase_relation``.
        value: see ``erase_neurons``.
        across_relations: whether facts of other relations are expected among ``prompts``: the control that needs facts
            of two relations.
        seed: seed of the random neurons, as many in each layer as are erased.
        tokenizer: the tokenizer to look ``value`` up in, instead of the model's own.
        memory_budget: bytes of memory for passes; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            rows.

    Returns:
        A table with a row for each erased ``relation``, ``neuron_set`` (``found``, ``activation``, ``random``) and
        fact of ``prompts``: ``question`` (``same relation`` or ``other relations``), ``measured`` (the fact's key),
        ``measured_relation``, ``n_neurons``; and over its ``n_prompts`` prompts ``right_before``, ``right_after``,
        ``lost``, ``nll_before``, ``nll_after``, as in ``update_effects``. Cost: a forward pass for each row of
        ``prompts``, and once more for each relation and set of neurons.

    Raises:
        ArgumentError: no facts, a relation without prompts, prompts of it alone with ``across_relations``, a fact
            without activation neurons;
            numbers out of range; a wrong kind of argument.
        EditError: nothing to erase; see ``erase_relation``.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> facts = kn.FactSet.world("held_out")
        >>> prompts = kn.make_prompts(model, [facts.of("P36")[0], facts.of("P30")[0]])
        >>> found = {facts.of("P36")[0]: kn.NeuronSet([(3, 5), (3, 17)])}
        >>> effects = kn.erase_effects(model, prompts, found)
        >>> effects[["neuron_set", "question", "measured"]].values.tolist()[:2]
        [['found', 'same relation', 'P36/China/Beijing'], ['found', 'other relations', 'P30/China/Asia']]
    """
    import pandas as pd

    host = checked_host(host_for(model, prompts))
    budget = Budget.of(host, memory_budget)
    check_prompts(prompts, "prompts")
    prompts.check_for(host)
    check_neurons_by_fact(neurons_by_fact)
    if activation_neurons is not None:
        check_each_has_neurons(
            neurons_by_fact,
            activation_neurons,
            "activation_neurons",
            "activation neurons",
        )
    prompts_of = {fact: chosen.cpu().numpy() for fact, chosen in prompts_by_fact(prompts).items()}
    erasures: list[tuple[str, str, WeightEdit]] = []
    for relation, sets in _by_relation(neurons_by_fact, prompts_of, across_relations).items():
        edit = erase_relation(
            model,
            sets,
            top=top,
            min_facts=min_facts,
            value=value,
            tokenizer=tokenizer,
        )
        active = None
        if activation_neurons is not None:
            active_sets = {fact: activation_neurons[fact] for fact in sets}
            active = relation_neurons(active_sets, top=len(edit.neurons))[relation]
        erasures.append((relation, "found", edit))
        for name, neurons in _controls(host, edit.neurons, active, relation, seed).items():
            control = erase_neurons(model, neurons, value=value, tokenizer=tokenizer)
            erasures.append((relation, name, control))

    tick = Ticks(progress, prompts.n_rows * (1 + len(erasures)))
    before = score_answers(host, prompts, [], budget, tick)
    records = []
    for relation, name, edit in erasures:
        with edit.applied(host):
            after = score_answers(host, prompts, [], budget, tick)
        for fact, chosen in prompts_of.items():
            records.append(
                {
                    "relation": relation,
                    "neuron_set": name,
                    "n_neurons": len(edit.neurons),
                    "question": SAME_RELATION if fact.relation == relation else OTHER_RELATIONS,
                    "measured": fact.key,
                    "measured_relation": fact.relation,
                    **current_answer_columns(before.select(chosen), after.select(chosen)),
                }
            )
    return pd.DataFrame(records)


def _by_relation(
    neurons_by_fact: Mapping[Fact, NeuronSet],
    prompts_of: Mapping[Fact, Any],
    across_relations: bool,
) -> dict[str, dict[Fact, NeuronSet]]:
    """Return the sets of each relation, after a check that there are prompts of it, and of others where expected."""
    groups: dict[str, dict[Fact, NeuronSet]] = {}
    for fact, neurons in neurons_by_fact.items():
        groups.setdefault(fact.relation, {})[fact] = neurons
    if not groups:
        raise ArgumentError("There are no neurons of any relation to erase; expected at least one fact.")
    known = {fact.relation for fact in prompts_of}
    for relation in groups:
        if relation not in known or (across_relations and len(known) == 1):
            near = did_you_mean(relation, known - {relation})
            raise ArgumentError(
                f"The prompts are of {', '.join(sorted(known))}; "
                f"expected some of {relation}, which is to be erased, and some of other relations, or "
                f"across_relations=False.{near}"
            )
    return groups


# --- controls and checks ----------------------------------------------------------------------------------


def _controls(
    host: Host,
    found: NeuronSet,
    active: NeuronSet | None,
    name: str,
    seed: int,
) -> dict[str, NeuronSet]:
    """Return the control neurons by the name of their set.

    Args:
        host: the model.
        found: the neurons to control.
        active: the most active neurons; None leaves them out.
        name: the fact or relation, which takes part in the seed.
        seed: seed of the random neurons.
    """
    controls = {} if active is None else {"activation": active}
    controls["random"] = random_neurons(found, host, [seed, zlib.crc32(name.encode())])
    return controls


def _checked_doses(doses: Any) -> list[float]:
    if not isinstance(doses, Iterable):
        raise ArgumentError(f"doses={doses!r}; expected factors, such as [1.0].")
    doses = list(doses)
    if not doses:
        raise ArgumentError("doses is empty; expected at least one factor, such as 1.0.")
    return doses
