"""What an intervention does to the answers, and whether it does so to this fact alone.

``measure`` reads every prompt before and after. ``controlled_effects`` does so for each fact's own neurons and for
control neurons (random ones of the same layers, and as many of highest activation), on the fact's own prompts and on
those of a random fact of another relation; ``effect_table`` sums that up as Dai et al. (2022, section 4.3) do:

    change ratio of a relation = mean(P_after - P_before) / mean(P_before)         means over all prompts of its facts
    change ratio               = mean over relations

``P`` is the probability of the right answer; that of an answer of several tokens is the product over its tokens, each
given the right ones before it.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from kn_lens._budget import Budget
from kn_lens._draws import interval, mean_of_known, resampled
from kn_lens._exclusive import exclusive
from kn_lens._reading import Change, Progress, Ticks, read, read_changes
from kn_lens._refining import prompts_by_fact
from kn_lens.engine import check_numbers
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import Host, host_of
from kn_lens.interventions import Intervention, Suppress
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import random_neurons
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.effect_plots import Effect

Intervene = Callable[[Sequence[NeuronSet]], Intervention]
"""Makes an intervention from one set of neurons for each prompt."""

KINDS = ("found", "activation", "random")
SCOPES = ("own", "other")


@exclusive
def measure(
    model: Any,
    prompts: PromptBatch,
    interventions: Intervention | Sequence[Intervention],
    *,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | None = None,
) -> "Effect":
    """Read every prompt without and with interventions.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: what to ask it.
        interventions: one, or several that act in their order.
        tokenizer: to show the top answers as text, instead of the model's own; without either they are token ids.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: called with (done, total), counted in rows.

    Returns:
        A pandas table, drawn by its ``plot()``, with one row a prompt: ``relation``, ``subject``, ``object``, ``text``;
        ``before``, ``after`` and ``change`` (after - before) of the answer's probability; ``log_prob_before``,
        ``log_prob_after`` in nats; ``rank_before``, ``rank_after``: the zero-based rank of the answer, how many tokens
        are more probable (in half precision others may be just as probable), for an answer of several tokens the worst
        of theirs, so that 0 means that the model says it token by token; ``top_before``, ``top_after``: the most
        probable token in each place of the answer, given the right ones before it. Where an intervention makes
        activations overflow, probabilities are NaN and the rank is behind all tokens. Cost: two forward passes a row.

    Raises:
        ArgumentError: neurons or prompts that do not fit the model, a prompt without a set of neurons, or a
            budget of no memory.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> effect = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet([])))
        >>> float(effect.change.abs().max())
        0.0
    """
    from kn_lens.effect_plots import Effect

    host = _checked_host(model, prompts)
    budget = Budget.of(host, memory_budget)
    given = cast("list[Intervention]", list(interventions if isinstance(interventions, Sequence) else [interventions]))
    _check_hooks(host, prompts, given)
    tick = Ticks(progress, 2 * prompts.n_rows)
    before = read(host, prompts, [], budget, tick)
    check_numbers(host, prompts, torch.from_numpy(before.log_prob))
    after = read(host, prompts, given, budget, tick)
    tokenizer = host.tokenizer if tokenizer is None else tokenizer
    facts = [prompts.facts[i] for i in prompts.fact_index.tolist()]
    return Effect(
        {
            "relation": [fact.relation for fact in facts],
            "subject": [fact.subject for fact in facts],
            "object": [fact.object for fact in facts],
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
def controlled_effects(
    model: Any,
    prompts: PromptBatch,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    intervene: Intervene | Mapping[Any, Intervene] = Suppress,
    seed: int = 0,
    memory_budget: float | None = None,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Measure an intervention on each fact's neurons beside its controls.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: prompts of the facts, and of facts of other relations; all of the latter may be drawn as "other".
        neurons_by_fact: the neurons found. Every fact needs prompts.
        activation_neurons: as many neurons of highest activation, from ``kn_lens.activation_neurons``; None leaves this
            control out.
        intervene: makes the intervention from one set of neurons for each prompt; ``lambda n: Amplify(n, 3.0)``. Or
            several of these by name, which share all that does not depend on them.
        seed: draws the random neurons and the facts of other relations; the random neurons of a fact do not depend on
            which other facts are measured.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: called with (done, total), counted in rows.

    Returns:
        A table with one row for each fact, ``neurons`` (``found``, ``activation``, ``random``) and ``facts`` (``own``:
        read on the fact's own prompts; ``other``: on those of a fact of another relation): ``relation``, ``subject``,
        ``object`` and ``key`` of the fact; ``measured``, the key of the fact whose prompts were read; ``n_neurons``,
        ``n_prompts``; and ``before``, ``after``, mean probabilities over these prompts. With several interventions the
        same for each, and ``intervention``, its name, as the first column. Cost: one forward pass for each row that is
        read, and for each intervention and kind of neurons one for each row of own and of other prompts; from the
        lowest layer with neurons up, where the intervention acts at the read position alone.

    Raises:
        ArgumentError: no facts, a fact without prompts or without activation neurons, prompts of one relation only,
            neurons that the model does not have, no intervention, or a budget of no memory.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> facts = [kn.FactSet.world().find("Ireland", relation=one) for one in ("P36", "P30")]
        >>> prompts = kn.make_prompts(model, facts)
        >>> effects = kn.controlled_effects(model, prompts, {facts[0]: kn.NeuronSet([(2, 5), (3, 17)])})
        >>> effects[["neurons", "facts", "measured"]].values.tolist()[1:3]
        [['random', 'own', 'P36/Ireland/Dublin'], ['found', 'other', 'P30/Ireland/Europe']]
    """
    import pandas as pd

    host = _checked_host(model, prompts)
    Budget.of(host, memory_budget)  # before any work
    prompts_of = prompts_by_fact(prompts)
    pool = FactSet(prompts_of)
    facts = list(neurons_by_fact)
    _check_facts(facts, prompts_of, activation_neurons)
    makers = intervene if isinstance(intervene, Mapping) else {"": intervene}
    if not makers:
        raise ArgumentError("intervene is empty; expected an intervention, or some by name: {'off': Suppress}.")
    others = dict(zip(pool, pool.paired_with_other_relations(seed), strict=True))
    kinds: dict[str, Mapping[Fact, NeuronSet]] = {"found": neurons_by_fact}
    if activation_neurons is not None:
        kinds["activation"] = activation_neurons
    kinds["random"] = {
        fact: random_neurons(neurons_by_fact[fact], host, [seed, zlib.crc32(fact.key.encode())]) for fact in facts
    }
    readings = {"own": facts, "other": [pool[others[fact]] for fact in facts]}

    runs, changes = [], []
    for scope, read_facts in readings.items():
        chosen = torch.cat([prompts_of[fact] for fact in read_facts]).to(prompts.tokens.device)
        owner = np.repeat(np.arange(len(facts)), [len(prompts_of[fact]) for fact in read_facts])
        part = prompts.select(chosen)
        for (name, make), (kind, sets) in product(makers.items(), kinds.items()):
            intervention = make([sets[facts[i]] for i in owner])
            _check_hooks(host, part, [intervention])
            changes.append(Change.of(host, chosen, part, intervention))
            runs.append((name, kind, scope, read_facts, sets, owner))

    n_read = len(prompts.rows_of(torch.cat([change.chosen for change in changes]).unique()))
    tick = Ticks(progress, n_read + sum(change.prompts.n_rows for change in changes))
    clean, after = read_changes(host, prompts, changes, memory_budget, tick)
    tables = []
    for (name, kind, scope, read_facts, sets, owner), change, log_prob in zip(runs, changes, after, strict=True):
        n_prompts = np.bincount(owner)
        table = pd.DataFrame(
            {
                "relation": [fact.relation for fact in facts],
                "subject": [fact.subject for fact in facts],
                "object": [fact.object for fact in facts],
                "key": [fact.key for fact in facts],
                "neurons": kind,
                "facts": scope,
                "measured": [fact.key for fact in read_facts],
                "n_neurons": [len(sets[fact]) for fact in facts],
                "n_prompts": n_prompts,
                "before": np.bincount(owner, weights=np.exp(clean[change.chosen.cpu().numpy()])) / n_prompts,
                "after": np.bincount(owner, weights=np.exp(log_prob)) / n_prompts,
            }
        )
        if isinstance(intervene, Mapping):
            table.insert(0, "intervention", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def effect_table(
    effects: "pd.DataFrame",
    *,
    by_relation: bool = False,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> "pd.DataFrame":
    """Sum up ``controlled_effects`` as change ratios with bootstrap intervals.

    The facts of each relation are drawn anew, with replacement, ``n_resamples`` times. The interval says how much
    depends on which facts were measured, the relations being given: it is to hold the change ratio of all facts that
    could have been measured so often as ``level`` says. There is none (NaN) of fewer than 8 facts, where none would do
    so; facts without another of their relation do not count. Effects on other facts come from few of them: in a single
    relation their intervals of 95% hold it 90% of the time (docs/method.md).

    A relation whose ``before`` are all 0 has no ratio, and is left out of the row of all relations; a draw in which
    they become so leaves it out too.

    Args:
        effects: the table of ``controlled_effects``, or several of them concatenated.
        by_relation: one row for each relation too, instead of their mean.
        n_resamples: bootstrap samples.
        level: of the interval.
        seed: of the bootstrap.

    Returns:
        One row for each ``neurons`` and ``facts`` (and ``relation``): ``change_ratio`` with its interval ``low`` to
        ``high``; ``change`` and ``before``, the mean change and the mean probability before (means over prompts,
        then over relations); ``n_neurons``, mean per fact; ``n_facts``, those behind the row. A ratio is NaN where all
        ``before`` are 0; there is no interval either where more than 1 - ``level`` of the draws have no ratio, or
        where all facts are alike.

    Raises:
        ArgumentError: an empty table or one without the columns needed, or a number out of range.

    >>> import pandas as pd
    >>> row = {"relation": "P36", "neurons": "found", "facts": "own", "n_neurons": 4, "n_prompts": 10}
    >>> effects = pd.DataFrame([{**row, "before": 0.5, "after": 0.4}, {**row, "before": 0.3, "after": 0.2}])
    >>> float(effect_table(effects).change_ratio[0])
    -0.25
    """
    import pandas as pd

    columns = ("relation", "neurons", "facts", "n_neurons", "n_prompts", "before", "after")
    for column in columns:
        if column not in effects:
            raise ArgumentError(f"The effects have no column {column!r}.{did_you_mean(column, map(str, effects))}")
    if not len(effects):
        raise ArgumentError("The effects are empty; expected the table of controlled_effects.")
    if n_resamples < 1 or not 0 < level < 1:
        raise ArgumentError(
            f"n_resamples={n_resamples}, level={level}; expected at least 1 sample and a level between 0 and 1."
        )
    generator = np.random.default_rng(seed)
    rows = []
    cells = dict.fromkeys(zip(effects["neurons"], effects["facts"], strict=True))
    for kind, scope in sorted(cells, key=lambda cell: (_place(cell[0], KINDS), _place(cell[1], SCOPES))):
        cell = effects.loc[(effects["neurons"] == kind) & (effects["facts"] == scope)]
        groups = [
            (relation, _resampled(group, n_resamples, generator))
            for relation, group in cell.groupby("relation", sort=False)
        ]
        if by_relation:
            rows += [{"neurons": kind, "facts": scope, "relation": name, **_row([one], level)} for name, one in groups]
        else:
            rows.append({"neurons": kind, "facts": scope, **_row([one for _, one in groups], level)})
    return pd.DataFrame(rows)


def _place(name: str, names: Sequence[str]) -> int:
    """Return where a label of ours stands; a caller's own comes behind."""
    return names.index(name) if name in names else len(names)


@dataclass(frozen=True, kw_only=True)
class _Relation:
    """A relation's means over prompts, and its change ratio for resampled facts."""

    n_facts: int
    n_neurons: float
    before: float
    change: float
    drawn: np.ndarray


def _resampled(group: "pd.DataFrame", n_resamples: int, generator: np.random.Generator) -> _Relation:
    n_prompts = group["n_prompts"].to_numpy()
    before = group["before"].to_numpy() * n_prompts
    change = group["after"].to_numpy() * n_prompts - before
    counts = resampled(len(group), n_resamples, generator)
    return _Relation(
        n_facts=len(group),
        n_neurons=float(group["n_neurons"].mean()),
        before=before.sum() / n_prompts.sum(),
        change=change.sum() / n_prompts.sum(),
        drawn=_ratio(counts @ change, counts @ before),
    )


def _row(relations: Sequence[_Relation], level: float) -> dict[str, float]:
    """Return the mean over the relations that have a ratio, with the interval of the resampled mean."""
    known = [one for one in relations if one.before != 0] or relations
    ratio = np.mean([_ratio(np.array(one.change), np.array(one.before)) for one in known])
    # Of a relation with a fact that is NaN all draws are, and the mean of the others is no ratio of all.
    drawn = np.full(1, np.nan) if np.isnan(ratio) else mean_of_known(np.stack([one.drawn for one in known]))
    n_facts = sum(one.n_facts for one in known)
    return {
        "change_ratio": float(ratio),
        **interval(drawn, np.array([one.n_facts for one in known]), level),
        "change": float(np.mean([one.change for one in known])),
        "before": float(np.mean([one.before for one in known])),
        "n_neurons": sum(one.n_neurons * one.n_facts for one in known) / n_facts,
        "n_facts": n_facts,
    }


def _ratio(change: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.divide(change, before, out=np.full(before.shape, np.nan), where=before != 0)


def _checked_host(model: Any, prompts: PromptBatch) -> Host:
    host = host_of(model)
    prompts.check_for(host)
    host.check_finite()
    return host


def _check_hooks(host: Host, prompts: PromptBatch, interventions: Iterable[Intervention]) -> None:
    """Make the hooks for all prompts at once, so that whatever is wrong with any comes up before the model runs."""
    for one in interventions:
        host.check_hooks(name for name, _ in one.hooks(host.model, prompts))


def _check_facts(
    facts: Sequence[Fact], prompts_of: Mapping[Fact, Any], activation_neurons: Mapping[Fact, NeuronSet] | None
) -> None:
    if not facts:
        raise ArgumentError("There are no facts with neurons to measure.")
    for fact in facts:
        if fact not in prompts_of:
            near = did_you_mean(fact.key, (other.key for other in prompts_of))
            raise ArgumentError(f"{fact.key} has neurons and no prompts; expected prompts of every fact.{near}")
        if activation_neurons is not None and fact not in activation_neurons:
            raise ArgumentError(f"{fact.key} has neurons and no activation neurons; expected both for every fact.")
