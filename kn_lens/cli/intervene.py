"""``kn-lens intervene``: turn neurons off or up and see which facts move."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._whole_files import write_whole
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, read_facts
from kn_lens.cli._options import check_out, option
from kn_lens.cli._run import (
    ask,
    described,
    effect_records,
    in_bytes,
    load_for,
    most_active,
)
from kn_lens.cli._tables import intervened_table, left_out_lines
from kn_lens.cli._terminal import out, print_json, working
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.interventions import Intervention, Position
    from kn_lens.neuron_sets import NeuronSet
    from kn_lens.prompts import PromptBatch

WHAT = "What is done to the neurons"
OTHERS_AT_LEAST = 100
"""Facts of other relations are drawn from the facts chosen and as many more of the source, at least so many."""


def intervene(
    neurons: Annotated[
        Path, typer.Option("--neurons", "-n", metavar="FILE", help="Neuron file, such as `kn-lens find` writes.")
    ],
    suppress: Annotated[
        bool, typer.Option("--suppress", help="Turn the neurons off; so unless another is given.", rich_help_panel=WHAT)
    ] = False,
    amplify: Annotated[float | None, option(WHAT, "FACTOR", "Multiply their activations.")] = None,
    set_to: Annotated[float | None, option(WHAT, "VALUE", "Set their activations.")] = None,
    all_positions: Annotated[
        bool,
        typer.Option("--all-positions", help="Not only where answers are read.", rich_help_panel=WHAT),
    ] = False,
    controls: Annotated[
        bool, typer.Option(help="Also other neurons, and facts of other relations.", rich_help_panel=WHAT)
    ] = True,
    model: options.ModelOfNeurons = None,
    device: options.Device = None,
    dtype: options.DtypeOfNeurons = None,
    force: options.Force = False,
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    leave_out_unknown: options.LeaveOutUnknown = False,
    to: options.Out = None,
    json: options.Json = False,
) -> None:
    """Turn the neurons of facts off or up, and measure these facts and others.

    The table gives the change of the right answer's probability, relative to what it was, with a 95% bootstrap
    interval; --out takes what it is made of, fact by fact, as CSV.
    """
    memory_budget = in_bytes(memory)
    label, make = _intervention(suppress, amplify, set_to, "all" if all_positions else "read")
    check_out(to, facts, neurons, templates)
    source = read_facts(facts, format, templates, split)
    sets = _sets(neurons, source, choose(source, relation, subject, limit, seed))
    loaded = load_for(neurons, model, device, dtype, force=force)
    _check_neurons(sets, loaded)
    prompts = ask(loaded, sets, leave_out=leave_out_unknown)
    without = [fact for fact, n in prompts.prompts_per_fact().items() if not n]
    sets = {fact: found for fact, found in sets.items() if fact not in without}

    job = _Job(model=loaded, prompts=prompts, sets=sets, intervene=make(), seed=seed, memory_budget=memory_budget)
    effects = _controlled(job, source) if controls else _alone(job)
    document = {
        "command": "intervene",
        "model": described(loaded),
        "neurons": str(neurons),
        "intervention": label,
        "positions": "all" if all_positions else "read",
        "seed": seed,
        "n_facts": len(sets),
        "n_facts_without_neurons": sum(not found for found in sets.values()),
        "facts_without_prompts": [fact.key for fact in without],
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
    out.print(intervened_table(document))
    for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
        out.print(line, soft_wrap=True)
    if to is not None:
        out.print(f"Effects on every fact written to {to}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What to measure, and how."""

    model: Any
    prompts: "PromptBatch"
    sets: "Mapping[Fact, NeuronSet]"
    intervene: "Callable[[Any], Intervention]"
    seed: int
    memory_budget: float | None


def _intervention(
    suppress: bool, amplify: float | None, set_to: float | None, position: "Position"
) -> "tuple[str, Callable[[], Callable[[Any], Intervention]]]":
    """Return what the intervention is called, and what makes it once its class may be imported.

    Raises:
        ArgumentError: more than one is asked for, or a number that is none.
    """
    given = {"--suppress": suppress, "--amplify": amplify is not None, "--set-to": set_to is not None}
    if sum(given.values()) > 1:
        raise ArgumentError(f"{' and '.join(name for name in given if given[name])} exclude each other; give one.")
    if not math.isfinite(amplify or 0) or not math.isfinite(set_to or 0):
        raise ArgumentError("--amplify and --set-to take a finite number.")

    def make() -> "Callable[[Any], Intervention]":
        from kn_lens.interventions import Amplify, SetTo, Suppress

        if amplify is not None:
            return partial(Amplify, factor=amplify, position=position)
        if set_to is not None:
            return partial(SetTo, value=set_to, position=position)
        return partial(Suppress, position=position)

    label = "off" if amplify is None else f"x{amplify:g}"
    return label if set_to is None else f"= {set_to:g}", make


def _sets(path: Path, source: FactSet, chosen: FactSet) -> "dict[Fact, NeuronSet]":
    """Return the neurons of the chosen facts that the file has an entry for.

    Raises:
        DataError: the file is not one of neurons, an entry is for no fact of the source, or none is for those chosen.
    """
    from kn_lens.neuron_sets import NeuronSet, match_facts

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


def _controlled(job: _Job, source: FactSet) -> "pd.DataFrame":
    """Measure beside random and most active neurons, on each fact and on one of another relation."""
    from kn_lens.effects import controlled_effects

    if len(source.relations) < 2:
        raise ArgumentError(
            f"The controls need facts of another relation, and these are all of {', '.join(source.relations)}: name a "
            "source with more relations (--relation chooses from it), or give --no-controls."
        )
    n_others = max(OTHERS_AT_LEAST, len(job.sets))
    rest = FactSet(fact for fact in source if fact not in job.sets and fact.templates)
    others = rest.sample(min(len(rest), n_others), job.seed)
    if len({fact.relation for fact in (*job.sets, *others)}) < 2:  # nearly all of the source are of one relation
        rest = rest.of(*({fact.relation for fact in rest} - {fact.relation for fact in job.sets}))
        others = rest.sample(min(len(rest), n_others), job.seed)
    pool = ask(job.model, [*job.sets, *others], leave_out=True)
    relations = {fact.relation for fact, n in pool.prompts_per_fact().items() if n}
    if len(relations) < 2:  # before the model runs
        raise ArgumentError(
            f"The controls need facts of another relation, and of those drawn the model can be asked for facts of "
            f"{', '.join(relations)} alone; name a source with others that it can be asked for, or give --no-controls."
        )
    active = most_active(job.model, job.prompts, job.sets, memory_budget=job.memory_budget)
    with working("Measuring", unit="prompts") as show:
        return controlled_effects(
            job.model, pool, job.sets, active, intervene=job.intervene, seed=job.seed, memory_budget=job.memory_budget,
            progress=show,
        )  # fmt: skip


def _alone(job: _Job) -> "pd.DataFrame":
    """Measure the facts' own neurons on the facts themselves; columns as those of ``controlled_effects``."""
    import numpy as np
    import pandas as pd

    from kn_lens.effects import measure

    prompts = job.prompts
    with working("Measuring", unit="prompts") as show:
        effect = measure(job.model, prompts, job.intervene(job.sets), memory_budget=job.memory_budget, progress=show)
    owner = prompts.fact_index.cpu().numpy()
    n_prompts = np.bincount(owner, minlength=len(prompts.facts))
    before, after = (
        np.bincount(owner, weights=effect[column], minlength=len(prompts.facts)) / np.maximum(n_prompts, 1)
        for column in ("before", "after")
    )
    return pd.DataFrame(
        {
            "relation": fact.relation,
            "subject": fact.subject,
            "object": fact.object,
            "key": fact.key,
            "neurons": "found",
            "facts": "own",
            "measured": fact.key,
            "n_neurons": len(job.sets[fact]),
            "n_prompts": n_prompts[number],
            "before": before[number],
            "after": after[number],
        }
        for number, fact in enumerate(prompts.facts)
        if fact in job.sets
    )
