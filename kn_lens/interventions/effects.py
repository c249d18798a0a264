"""The effect of interventions on the answers, and its specificity to a fact.

``measure`` scores the answer of every prompt without and with interventions. ``controlled_effects`` does so for each
fact's own neurons and for control neurons (random ones of the same layers, and as many of highest activation), on the
fact's own prompts and on those of a random fact of another relation; ``effect_table`` summarises its table.

``P`` is the probability of the right answer; that of an answer of several tokens is the product over its tokens, each
given the right ones before it.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from kn_lens._core.checks import wrong_kind
from kn_lens._core.display import ROWS_SHOWN, table_html
from kn_lens._core.drawing import drawing
from kn_lens._core.progress import draws_progress
from kn_lens._core.wording import counted
from kn_lens.attribution import check_numbers
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import Budget, HookedModel, Host, check_tokenizer, checked_host, exclusive
from kn_lens.interventions.hooks import Intervention, Suppress, check_expert_neurons_once
from kn_lens.interventions.scoring import Change, Progress, Ticks, score_answers, score_answers_under
from kn_lens.neurons import NeuronSet, check_neurons_by_fact, prompts_by_fact, random_neurons
from kn_lens.prompts import PromptBatch, check_prompts, host_for

MEASURED_COLUMNS = {"text", "before", "after", "change", "log_prob_before", "rank_before", "top_before"}
"""Columns by which the table of a measurement is told from a part of it."""

MAIN_COLUMNS = ("subject", "object", "text", "before", "after", "change", "top_before", "top_after")
"""Columns of an effect that are shown."""

Intervene = Callable[[Sequence[NeuronSet]], Intervention]
"""Makes an intervention from one set of neurons for each prompt."""


class Effect(pd.DataFrame):
    """A pandas table of prompts, before and after an intervention.

    It is a ``DataFrame`` in all it does, and so are the parts that are taken of it. Its text is one line; ``print``
    shows its first rows, and notebooks those below that line. ``plot()``, without arguments, draws the figure of a
    report. Where a part lacks the columns for them, or ``plot`` has arguments, all three are pandas' own.

    >>> effect = Effect({"text": ["Paris is in [MASK]."], "before": [0.9], "after": [0.1]})
    >>> effect.plot().layout.xaxis.title.text
    'probability of the answer'
    """

    def __repr__(self) -> str:
        if not self._is_whole():
            return super().__repr__()
        return f"Effect({self._summary()})"

    def __str__(self) -> str:
        if not self._is_whole():
            return super().__repr__()
        with pd.option_context("display.max_rows", ROWS_SHOWN, "display.expand_frame_repr", False):
            return pd.DataFrame(self[self._columns_shown()]).__repr__()

    def _repr_html_(self) -> str | None:
        if not self._is_whole():
            return super()._repr_html_()  # pyright: ignore[reportAttributeAccessIssue]
        rows = self[self._columns_shown()].head(ROWS_SHOWN).itertuples(index=False)
        cells = [[f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
        return table_html(self._summary(), self._columns_shown(), cells, n_rows=len(self))

    def _is_whole(self) -> bool:
        """Return whether the table has the columns of a measurement, each once, and rows."""
        return bool(len(self)) and self.columns.is_unique and set(self.columns) >= MEASURED_COLUMNS

    def _columns_shown(self) -> list[str]:
        return [name for name in MAIN_COLUMNS if name in self.columns]

    def _summary(self) -> str:
        before = float(np.mean(self["before"].to_numpy()))
        after = float(np.mean(self["after"].to_numpy()))
        return (
            f"{counted(len(self), 'prompt')}: mean probability of the answer {before:.3g} before, "
            f"{after:.3g} after ({after - before:+.2g})"
        )

    @property
    def _constructor(self) -> "type[Effect]":
        return Effect

    @property
    def plot(self) -> Any:
        """Draw the probability of the answer before and after, a row a prompt; or what pandas draws."""
        return drawing("EffectPlot")(self)


@exclusive
@draws_progress("Measuring", "rows")
def measure(
    model: HookedModel | Host,
    prompts: PromptBatch,
    interventions: Intervention | Sequence[Intervention],
    *,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> Effect:
    """Score the answer of every prompt without and with interventions.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: the prompts.
        interventions: one, or several that act in their order.
        tokenizer: decodes the top answers, instead of the model's own; without either they are token ids.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            rows.

    Returns:
        A pandas table, drawn by its ``plot()``, with one row a prompt: ``relation``, ``subject``, ``object``, ``text``;
        ``before``, ``after`` and ``change`` (after - before) of the answer's probability; ``log_prob_before``,
        ``log_prob_after`` in nats; ``rank_before``, ``rank_after``: the zero-based rank of the answer, the number of
        more probable tokens (in half precision others may be just as probable), for an answer of several tokens the
        worst rank of them, so that 0 means that the model gives it token by token; ``top_before``, ``top_after``: the
        most probable token at each position of the answer, given the right ones before it. Where an intervention makes
        activations overflow, probabilities are NaN and the rank is behind all tokens. Cost: two forward passes per row.

    Raises:
        ArgumentError: neurons or prompts that do not fit the model, a prompt without a set of neurons, two
            interventions on one neuron of an expert, or a budget of no memory.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> effect = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet([])))
        >>> float(effect.change.abs().max())
        0.0
    """
    host = checked_host(host_for(model, prompts))
    check_prompts(prompts)
    check_tokenizer(tokenizer)
    applied = _checked_interventions(interventions)
    prompts.check_for(host)
    budget = Budget.of(host, memory_budget)
    _check_hooks(host, prompts, applied)
    tick = Ticks(progress, 2 * prompts.n_rows)
    before = score_answers(host, prompts, [], budget, tick)
    check_numbers(host, prompts, torch.from_numpy(before.log_prob))
    after = score_answers(host, prompts, applied, budget, tick)
    if tokenizer is None:
        tokenizer = host.tokenizer
    facts = [prompts.fact(prompt) for prompt in range(len(prompts))]
    return Effect(
        {
            **fact_columns(facts),
            "text": prompts.text,
            "before": before.prob,
            "after": after.prob,
            "change": after.prob - before.prob,
            "log_prob_before": before.log_prob,
            "log_prob_after": after.log_prob,
            "rank_before": before.rank,
            "rank_after": after.rank,
            "top_before": before.top_text(tokenizer),
            "top_after": after.top_text(tokenizer),
        }
    )


@exclusive
@draws_progress("Measuring controls", "rows")
def controlled_effects(
    model: HookedModel | Host,
    prompts: PromptBatch,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    intervene: Intervene | Mapping[Any, Intervene] = Suppress,
    across_relations: bool = True,
    seed: int = 0,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> pd.DataFrame:
    """Measure an intervention on each fact's neurons beside its controls.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: prompts of the facts, and of facts of other relations; all of the latter may be drawn as "other".
        neurons_by_fact: the neurons found. Every fact needs prompts.
        activation_neurons: as many neurons of highest activation, from ``kn_lens.activation_neurons``; None leaves this
            control out.
        intervene: returns the intervention on one set of neurons for each prompt; ``lambda n: Amplify(n, 3.0)``. Or
            several of these by name, which share all passes that do not depend on them.
        across_relations: whether to measure each intervention on a fact of another relation too, the control that needs
            facts of two relations.
        seed: of the random neurons and of the draw of facts of other relations; the random neurons of a fact do not
            depend on the other facts.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            rows.

    Returns:
        A table with one row for each fact, ``neuron_set`` (``found``, ``activation``, ``random``) and ``scope``
        (``own``: read on the fact's own prompts; ``other``: on those of a fact of another relation, unless
        ``across_relations`` is False): ``relation``,
        ``subject``, ``object`` and ``key`` of the fact; ``measured``, the key of the fact whose prompts were read;
        ``n_neurons``, ``n_prompts``; and ``before``, ``after``, mean probabilities over these prompts. With several
        interventions the same for each, and ``intervention``, its name, as the first column. Cost: one forward pass for
        each row that is read, and for each intervention and kind of neurons one for each row of own and of other
        prompts; from the lowest layer with neurons up, where the intervention acts where the prompts are put (no
        ``position``).

    Raises:
        ArgumentError: no facts, a fact without prompts or without activation neurons, prompts of one relation only with
            ``across_relations``, neurons that the model does not have, no intervention, or a budget of no memory.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> world = kn.FactSet.world()
        >>> facts = [world.find("Ireland", relation="P36"), world.find("Ireland", relation="P30")]
        >>> prompts = kn.make_prompts(model, facts)
        >>> effects = kn.controlled_effects(model, prompts, {facts[0]: kn.NeuronSet([(2, 5), (3, 17)])})
        >>> effects[["neuron_set", "scope", "measured"]].values.tolist()[1:3]
        [['random', 'own', 'P36/Ireland/Dublin'], ['found', 'other', 'P30/Ireland/Europe']]
    """
    host = checked_host(host_for(model, prompts))
    check_prompts(prompts)
    check_neurons_by_fact(neurons_by_fact)
    if activation_neurons is not None:
        check_neurons_by_fact(activation_neurons, "activation_neurons")
    prompts.check_for(host)
    Budget.of(host, memory_budget)  # before any work
    prompts_of = prompts_by_fact(prompts)
    pool = FactSet(prompts_of)
    facts = list(neurons_by_fact)
    check_facts(facts, prompts_of, activation_neurons)
    makers = intervene if isinstance(intervene, Mapping) else {"": intervene}
    if not makers:
        raise ArgumentError("intervene is empty; expected an intervention, or some by name: {'off': Suppress}.")
    for make in makers.values():
        if not callable(make):
            expected = (
                "a function that makes an intervention of one set for each prompt: kn_lens.Suppress, or "
                "lambda sets: kn_lens.Amplify(sets, 3.0)"
            )
            raise wrong_kind(make, expected, "intervene")
    measured_facts = {"own": facts}
    if across_relations:
        measured_facts["other"] = _facts_of_other_relations(facts, pool, seed)
    sets_by_kind: dict[str, Mapping[Fact, NeuronSet]] = {"found": neurons_by_fact}
    if activation_neurons is not None:
        sets_by_kind["activation"] = activation_neurons
    sets_by_kind["random"] = random_controls(host, neurons_by_fact, seed)

    readings: list[_Reading] = []
    changes: list[Change] = []
    for scope, measured in measured_facts.items():
        indices = [prompts_of[fact] for fact in measured]
        chosen = torch.cat(indices).to(prompts.tokens.device)
        owner = np.repeat(np.arange(len(facts)), list(map(len, indices)))
        part = prompts.select(chosen)
        for (name, make), (kind, sets) in product(makers.items(), sets_by_kind.items()):
            intervention = make([sets[facts[number]] for number in owner])
            _check_hooks(host, part, [intervention])
            change = Change.of(host, chosen, part, intervention)
            changes.append(change)
            reading = _Reading(
                intervention=name,
                neuron_set=kind,
                scope=scope,
                measured=measured,
                sets=sets,
                owner=owner,
                change=change,
            )
            readings.append(reading)

    covered = torch.cat([change.chosen for change in changes]).unique()
    n_rows = len(prompts.rows_of(covered))
    for change in changes:
        n_rows += change.prompts.n_rows
    tick = Ticks(progress, n_rows)
    clean, after = score_answers_under(host, prompts, changes, memory_budget, tick)
    tables = []
    for reading, changed in zip(readings, after, strict=True):
        table = reading.table(facts, clean.log_prob, changed.log_prob)
        if not isinstance(intervene, Mapping):
            table = table.drop(columns="intervention")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _facts_of_other_relations(facts: Sequence[Fact], pool: FactSet, seed: int) -> list[Fact]:
    """Return for each fact one of another relation, drawn from the pool.

    Raises:
        ArgumentError: the pool has one relation.
    """
    if len(pool.relations) < 2:
        raise ArgumentError(
            f"The prompts are of one relation, {', '.join(pool.relations)}; expected some of another too, or "
            "across_relations=False, which leaves out the effect on facts of another relation."
        )
    others = {}
    for fact, other in zip(pool, pool.paired_with_other_relations(seed), strict=True):
        others[fact] = pool[other]
    return [others[fact] for fact in facts]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """One intervention on one neuron set of each fact, read on the prompts of one fact for each.

    Attributes:
        intervention: its name.
        neuron_set: ``found``, ``activation`` or ``random``.
        scope: ``own`` or ``other``.
        measured: the fact whose prompts are read, for each fact.
        sets: the neurons of each fact.
        owner: the number of the fact of each prompt that is read.
        change: the intervention on these prompts.
    """

    intervention: Any
    neuron_set: str
    scope: str
    measured: Sequence[Fact]
    sets: Mapping[Fact, NeuronSet]
    owner: Int[np.ndarray, " item"]
    change: Change

    def table(
        self,
        facts: Sequence[Fact],
        clean: Float[np.ndarray, " batch"],
        after: Float[np.ndarray, " item"],
    ) -> pd.DataFrame:
        """Return one row for each fact, from the log-probabilities of all prompts and of those that were read."""
        n_prompts = np.bincount(self.owner)
        before = clean[self.change.chosen.cpu().numpy()]
        return pd.DataFrame(
            {
                "intervention": self.intervention,
                **fact_columns(facts),
                "key": [fact.key for fact in facts],
                "neuron_set": self.neuron_set,
                "scope": self.scope,
                "measured": [fact.key for fact in self.measured],
                "n_neurons": [len(self.sets[fact]) for fact in facts],
                "n_prompts": n_prompts,
                "before": np.bincount(self.owner, weights=np.exp(before)) / n_prompts,
                "after": np.bincount(self.owner, weights=np.exp(after)) / n_prompts,
            }
        )


def fact_columns(facts: Sequence[Fact]) -> dict[str, list[str]]:
    """Return the columns that name the fact of each row."""
    columns = {}
    for name in ("relation", "subject", "object"):
        columns[name] = [getattr(fact, name) for fact in facts]
    return columns


def random_controls(
    host: Host,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    seed: int,
) -> dict[Fact, NeuronSet]:
    """Return random neurons for each fact, which depend on the seed and on this fact alone."""
    controls = {}
    for fact, neurons in neurons_by_fact.items():
        fact_seed = [seed, zlib.crc32(fact.key.encode())]
        controls[fact] = random_neurons(neurons, host, fact_seed)
    return controls


def _checked_interventions(interventions: Any) -> list[Intervention]:
    """Return one intervention or several as a list.

    Raises:
        ArgumentError: another kind of argument, such as a set of neurons.
    """
    applied = list(interventions) if isinstance(interventions, (list, tuple)) else [interventions]
    for intervention in applied:
        if isinstance(intervention, type) or not isinstance(intervention, Intervention):
            raise wrong_kind(intervention, "an intervention: kn_lens.Suppress(neurons)")
    return applied


def _check_hooks(
    host: Host,
    prompts: PromptBatch,
    interventions: Sequence[Intervention],
) -> None:
    """Make the hooks for all prompts at once, so that any error is raised before the model runs."""
    for intervention in interventions:
        host.check_hooks(name for name, _ in intervention.hooks(host.model, prompts))
    check_expert_neurons_once(interventions, host, prompts)


def check_facts(
    facts: Sequence[Fact],
    prompts_of: Mapping[Fact, Any],
    activation_neurons: Mapping[Fact, NeuronSet] | None,
) -> None:
    """Raise unless there are facts, and each has prompts and, where these are given, activation neurons.

    Raises:
        ArgumentError: with the fact.
    """
    if not facts:
        raise ArgumentError("There are no facts with neurons to measure.")
    for fact in facts:
        if fact not in prompts_of:
            near = did_you_mean(fact.key, (other.key for other in prompts_of))
            raise ArgumentError(f"{fact.key} has neurons and no prompts; expected prompts of every fact.{near}")
        if activation_neurons is not None and fact not in activation_neurons:
            raise ArgumentError(f"{fact.key} has neurons and no activation neurons; expected both for every fact.")
