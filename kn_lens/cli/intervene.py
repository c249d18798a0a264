"""``kn-lens intervene``: the effects of neurons on facts, measured by suppressing, amplifying or setting them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.console import Group

from kn_lens._core import defaults
from kn_lens._core.advice import EFFECTS_ON_ANOTHER, ONE_RELATION
from kn_lens._core.atomic import write_whole
from kn_lens._core.intervals import WHY_NONE
from kn_lens._core.names import POSITION_NAMES, PositionName
from kn_lens._core.wording import counted
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, read_facts
from kn_lens.cli._options import check_output_path, choice, flag, option
from kn_lens.cli._run import (
    build_prompts,
    describe_model,
    effect_records,
    load_for_neurons,
    memory_budget_of,
    most_active_neurons,
    named_neurons,
    one_neuron_source,
    unqueried_facts,
)
from kn_lens.cli._tables import effects_table, is_missing, left_out_lines
from kn_lens.cli._terminal import out, print_json, show_progress
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.interventions import Intervention, Position
    from kn_lens.neurons import NeuronSet
    from kn_lens.prompts import PromptBatch

INTERVENTION = "Intervention"
MIN_OTHERS = 100
"""Facts of other relations are drawn from the chosen facts and as many more of the source, but at least this many."""


def intervene(
    neurons: options.Neurons,
    suppress: Annotated[
        bool,
        flag(INTERVENTION, "--suppress", "Suppression of the neurons; the default."),
    ] = False,
    amplify: Annotated[
        float | None,
        option(INTERVENTION, "FACTOR", "Factor of their activations."),
    ] = None,
    set_to: Annotated[
        float | None,
        option(INTERVENTION, "VALUE", "Value of their activations."),
    ] = None,
    all_positions: Annotated[
        bool,
        flag(INTERVENTION, "--all-positions", "Intervention at all positions, not only one."),
    ] = False,
    position: Annotated[
        str,
        choice(POSITION_NAMES, "Token whose activations change", INTERVENTION),
    ] = "read",
    controls: Annotated[
        bool,
        flag(INTERVENTION, "--controls/--no-controls", "Control neurons, and facts of other relations."),
    ] = True,
    model: options.ModelOfNeurons = None,
    device: options.Device = None,
    dtype: options.DtypeOfNeurons = None,
    side: options.Side = None,
    check: options.Check = True,
    force: options.Force = False,
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    leave_out_unknown: options.LeaveOutUnknown = False,
    to: options.Out = None,
    json: options.Json = False,
) -> None:
    """Suppress, amplify or set the neurons of facts, and measure these facts and others.

    The table gives the change of the correct answer's probability, relative to its value before, with a 95% bootstrap
    interval; --out takes the underlying values of each fact as CSV.

    Example:
        kn-lens intervene --neurons neurons.json --amplify 2
    """
    memory_budget = memory_budget_of(memory)
    if all_positions and position != "read":
        raise ArgumentError(f"--all-positions and --position {position} exclude each other; give one.")
    label, make_intervention = _intervention(suppress, amplify, set_to, "all" if all_positions else None)
    neuron_source = one_neuron_source(neurons)
    check_output_path(to, facts, neuron_source, templates)
    source = read_facts(facts, format, templates, split)
    sets = _neurons_of(neuron_source, source, choose(source, relation, subject, limit, seed))
    loaded = load_for_neurons(neuron_source, model, device, dtype, side=side, force=force, check=check)
    _check_neurons(sets, loaded)
    place = cast("PositionName", position)
    prompts = build_prompts(loaded, sets, leave_out=leave_out_unknown).at(place)
    unqueried = unqueried_facts(prompts)
    sets = {fact: found for fact, found in sets.items() if fact not in unqueried}

    job = _Job(
        model=loaded,
        prompts=prompts,
        sets=sets,
        intervene=make_intervention(),
        position=place,
        seed=seed,
        memory_budget=memory_budget,
    )
    effects = _controlled_effects(job, source) if controls else _own_effects(job)
    document = {
        "command": "intervene",
        "model": describe_model(loaded),
        "neurons": str(neuron_source),
        "intervention": label,
        "positions": "all" if all_positions else position,
        "controls": controls,
        "seed": seed,
        "n_facts": len(sets),
        "n_facts_without_neurons": sum(not found for found in sets.values()),
        "facts_without_prompts": [fact.key for fact in unqueried],
        "left_out": dict(prompts.left_out),
        "effects": effect_records(effects, seed),
        "facts": effects.to_dict("records"),
        "out": None if to is None else str(to),
    }
    if to is not None:
        write_whole(to, effects.to_csv(index=False))
    if json:
        print_json(document)
        return
    out.print(_effects_group(document))
    for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
        out.print(line, soft_wrap=True)
    if to is not None:
        out.print(f"Effects on every fact written to {to}", soft_wrap=True)


def _effects_group(document: Mapping[str, Any]) -> Group:
    """Return the table of effects with its note."""
    title = f"{document['model']['name']}: change of the answer's probability"
    note = (
        f"{counted(document['n_facts'], 'fact')}, {document['n_facts_without_neurons']:,} of them without "
        "neurons (and without any change). n: neurons per fact. Means over relations of (after - "
        "before) / before, with 95% bootstrap intervals."
    )
    if any(is_missing(row["low"]) for row in document["effects"]):
        note += f" {WHY_NONE}"
    scopes = {row["scope"] for row in document["effects"]}
    if document["controls"] and "other" not in scopes:
        note += f" {ONE_RELATION}: {EFFECTS_ON_ANOTHER}."
    return Group(effects_table(title, {document["intervention"]: document["effects"]}), note)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The model, facts and intervention of a measurement."""

    model: Any
    prompts: "PromptBatch"
    sets: "Mapping[Fact, NeuronSet]"
    intervene: "Callable[[Any], Intervention]"
    position: PositionName
    seed: int
    memory_budget: float | None


def _intervention(
    suppress: bool,
    amplify: float | None,
    set_to: float | None,
    position: "Position | None",
) -> "tuple[str, Callable[[], Callable[[Any], Intervention]]]":
    """Return the label of the intervention, and a function that imports and returns its constructor.

    Raises:
        ArgumentError: More than one is given, or a number is not finite.
    """
    given = {
        "--suppress": suppress,
        "--amplify": amplify is not None,
        "--set-to": set_to is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise ArgumentError(f"{' and '.join(names)} exclude each other; give one.")
    if not math.isfinite(amplify or 0) or not math.isfinite(set_to or 0):
        raise ArgumentError("--amplify and --set-to take a finite number.")

    def constructor() -> "Callable[[Any], Intervention]":
        from kn_lens.interventions import Amplify, SetTo, Suppress

        if amplify is not None:
            return partial(Amplify, factor=amplify, position=position)
        if set_to is not None:
            return partial(SetTo, value=set_to, position=position)
        return partial(Suppress, position=position)

    if amplify is not None:
        return f"x{amplify:g}", constructor
    if set_to is not None:
        return f"= {set_to:g}", constructor
    return "off", constructor


def _neurons_of(path: Path, source: FactSet, chosen: FactSet) -> "dict[Fact, NeuronSet]":
    """Return the neurons of the chosen facts with an entry in the file.

    Raises:
        DataError: The file is not a neuron file, an entry is not that of a fact of the source, or no entry is that of
            a chosen fact.
    """
    from kn_lens.neurons import NeuronSet, match_facts

    names = named_neurons(path)
    if names:
        return dict.fromkeys(chosen, NeuronSet(names))
    matched = match_facts(NeuronSet.read_many(path), source)
    sets = {fact: matched[fact] for fact in chosen if fact in matched}
    if not sets:
        raise DataError(f"{path} has neurons of {len(matched)} facts, none of them among the {len(chosen)} chosen.")
    return sets


def _check_neurons(sets: "Mapping[Fact, NeuronSet]", model: Any) -> None:
    from kn_lens.hosts import host_of

    host = host_of(model)
    for found in sets.values():
        found.check(host)


def _controlled_effects(job: _Job, source: FactSet) -> "pd.DataFrame":
    """Measure found, random and most active neurons, on each fact and on one of another relation, if there is any."""
    from kn_lens.interventions import controlled_effects

    others = _other_facts(job, source)
    pool = build_prompts(job.model, [*job.sets, *others], leave_out=True).at(job.position)
    relations = {fact.relation for fact, n in pool.prompts_per_fact().items() if n}
    active = most_active_neurons(job.model, job.prompts, job.sets, memory_budget=job.memory_budget)
    with show_progress("Measuring", unit="prompts") as progress:
        return controlled_effects(
            job.model,
            pool,
            job.sets,
            active,
            intervene=job.intervene,
            across_relations=len(relations) > 1,
            seed=job.seed,
            memory_budget=job.memory_budget,
            progress=progress,
        )


def _other_facts(job: _Job, source: FactSet) -> FactSet:
    """Return facts for the control on other relations, drawn from those that are not measured themselves."""
    n_others = max(MIN_OTHERS, len(job.sets))
    rest = FactSet(fact for fact in source if fact not in job.sets and fact.templates)
    others = rest.sample(min(len(rest), n_others), job.seed)
    own_relations = {fact.relation for fact in job.sets}
    if len(source.relations) > 1 and len(own_relations.union(others.relations)) < 2:
        # Nearly all facts of the source are of one relation, so that none of another was drawn.
        rest = rest.of(*(set(rest.relations) - own_relations))
        others = rest.sample(min(len(rest), n_others), job.seed)
    return others


def _own_effects(job: _Job) -> "pd.DataFrame":
    """Measure the found neurons on their own facts; the columns are those of ``controlled_effects``."""
    import numpy as np
    import pandas as pd

    from kn_lens.interventions import measure

    prompts = job.prompts
    with show_progress("Measuring", unit="prompts") as progress:
        effect = measure(
            job.model,
            prompts,
            job.intervene(job.sets),
            memory_budget=job.memory_budget,
            progress=progress,
        )
    fact_index = prompts.fact_index.cpu().numpy()
    n_facts = len(prompts.facts)
    n_prompts = np.bincount(fact_index, minlength=n_facts)
    divisor = np.maximum(n_prompts, 1)
    before = np.bincount(fact_index, weights=effect["before"], minlength=n_facts) / divisor
    after = np.bincount(fact_index, weights=effect["after"], minlength=n_facts) / divisor
    rows = []
    for number, fact in enumerate(prompts.facts):
        if fact in job.sets:
            rows.append(
                {
                    "relation": fact.relation,
                    "subject": fact.subject,
                    "object": fact.object,
                    "key": fact.key,
                    "neuron_set": "found",
                    "scope": "own",
                    "measured": fact.key,
                    "n_neurons": len(job.sets[fact]),
                    "n_prompts": n_prompts[number],
                    "before": before[number],
                    "after": after[number],
                }
            )
    return pd.DataFrame(rows)
