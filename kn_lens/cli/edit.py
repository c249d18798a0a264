"""``kn-lens edit``: weight edits, their effects, and the edited model as a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Group

from kn_lens._core import defaults
from kn_lens._core.advice import STRENGTH_ADVICE
from kn_lens._core.atomic import write_whole
from kn_lens._core.names import DTYPES, EDITOR_NAMES, FACT_FORMATS, UPDATE_FORMS, Scaling
from kn_lens._core.wording import counted
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, detect_format, head_of, read_facts, read_texts
from kn_lens.cli._help import Command, CommandGroup, help_without_subcommand
from kn_lens.cli._options import (
    FACTS,
    LEAVE_OUT_OPTION,
    MODEL,
    RESULT,
    check_output_path,
    choice,
    flag,
    named_option,
    option,
)
from kn_lens.cli._run import (
    build_prompts,
    describe_model,
    load,
    load_for_neurons,
    memory_budget_of,
    named_neurons,
    one_neuron_source,
    unqueried_facts,
)
from kn_lens.cli._tables import ROWS_SHOWN, interval, is_missing, left_out_lines, number, table
from kn_lens.cli._terminal import err, out, print_json, show_progress
from kn_lens.errors import ArgumentError, DataError, PromptError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    from kn_lens.edits import EditingData, Questions, WeightEdit
    from kn_lens.neurons import NeuronSet
    from kn_lens.prompts import PromptBatch

CHANGE = "Change of the rows"
EDITORS = "Editors"
MEASURES = "Measures"
TRIAL_OTHERS = 100
"""Other facts in the trial of an update, and beside compared editors, each in one template."""
TRIAL_SEED = 0
MOMENTS_FILE = ".safetensors"
COUNTERFACT, KNOWEDIT = EDITING_FORMATS = ("counterfact", "knowedit")
"""Formats of data sets for editing, which have new answers, held-out wordings and other facts."""
PLACES = {"found": "where the editor writes", "activation": "most active", "random": "random"}
"""Labels of where the rows of change go."""
COMPARED_LIMIT = 5
"""Facts of each relation that editors are compared on, unless told."""

app = typer.Typer(
    cls=CommandGroup,
    help="""Make weight edits, inspect and apply them, and write the edited model.

Example:
    kn-lens edit show tokyo.safetensors
    kn-lens edit apply tokyo.safetensors""",
    callback=help_without_subcommand,
    invoke_without_command=True,
)

Edits = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="Edit files, in order of application."),
]
To = Annotated[Path, named_option(RESULT, "--out -o", "FILE", "Output file of the edit.")]
ModelOfEdit = Annotated[
    str | None,
    named_option(MODEL, "--model -m", "NAME", "Model; that of the edit by default."),
]
DtypeOfEdit = Annotated[
    str | None,
    choice(DTYPES, "Data type of the weights, that of the edit by default", MODEL),
]


@app.command(cls=Command)
def update(
    neurons: options.Neurons,
    new_object: Annotated[str, named_option(None, "--object", "TEXT", "New answer.")],
    to: To,
    lambda_old: Annotated[
        float | None,
        option(
            CHANGE,
            "X",
            f"Factor of the old answer's embedding, subtracted; {defaults.LAMBDAS[0]:g} by default.",
        ),
    ] = None,
    lambda_new: Annotated[
        float | None,
        option(
            CHANGE,
            "X",
            f"Factor of the new answer's embedding, added; {defaults.LAMBDAS[1]:g} by default, "
            f"{UPDATE_FORMS['paper'].lambdas[1]:g} with --preset.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        choice(
            tuple(UPDATE_FORMS),
            "Form of the paper or of its released code, instead of the next two",
            CHANGE,
        ),
    ] = None,
    scaling: Annotated[
        str,
        choice(get_args(Scaling), "Unit of the factors: length of the row, or of the embedding", CHANGE),
    ] = defaults.SCALING,
    signed: Annotated[
        bool,
        flag(CHANGE, "--signed/--unsigned", "Reversed change for neurons with a negative activation."),
    ] = defaults.SIGNED,
    max_share: Annotated[
        float,
        option(
            CHANGE,
            "P",
            "Maximum share of the relation's facts that have a changed neuron.",
            min=0,
            max=1,
        ),
    ] = defaults.MAX_SHARE,
    allow_unknown: Annotated[
        bool,
        flag(CHANGE, "--allow-unknown", "Update of a fact that the model does not know."),
    ] = False,
    model: options.ModelOfNeurons = None,
    device: options.Device = None,
    dtype: options.DtypeOfNeurons = None,
    side: options.Side = None,
    check: options.Check = True,
    force: options.Force = False,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    json: options.Json = False,
) -> None:
    r"""Give one fact, chosen by --subject and --relation, another answer.

    The edit is tried on the fact and on a hundred other facts of the source, and its effects on both are printed.

    Example:
        kn-lens edit update --neurons neurons.json \
            --subject Ireland --relation P36 --object Tokyo \
            --out tokyo.safetensors
    """
    neuron_source = one_neuron_source(neurons)
    check_output_path(to, facts, neuron_source, templates)
    from kn_lens.edits import resolve_form

    form = resolve_form(None, preset, scaling, signed)  # type: ignore[arg-type]  # one of Scaling
    source = read_facts(facts, format, templates, split)
    chosen = choose(source, relation, subject, None, 0)
    if len(chosen) != 1:
        raise ArgumentError(f"The selection has {len(chosen)} facts; expected one, by --subject and --relation.")
    fact = chosen[0]
    found = _neurons_of(neuron_source, source, [fact])
    if fact not in found:
        raise DataError(f"{neuron_source} has no neurons of {fact.key}. Find them with `kn-lens find`.")
    loaded = load_for_neurons(neuron_source, model, device, dtype, side=side, force=force, check=check)

    from kn_lens.edits import update_fact

    edit = update_fact(
        loaded,
        fact,
        new_object,
        found[fact],
        lambdas=(
            form.lambdas[0] if lambda_old is None else lambda_old,
            form.lambdas[1] if lambda_new is None else lambda_new,
        ),
        preset=preset,  # type: ignore[arg-type]  # one of UPDATE_FORMS
        scaling=scaling,  # type: ignore[arg-type]  # one of Scaling
        signed=signed,
        neurons_by_fact=found,
        max_share=max_share,
        allow_unknown=allow_unknown,
    )
    trial = _trial(loaded, edit, fact, new_object, source)
    _save("edit update", edit, to, json, {"tried": trial})
    _warn_about_trial(trial)


@app.command(cls=Command)
def erase(
    neurons: options.Neurons,
    relation: Annotated[
        list[str],
        named_option(None, "--relation -r", "NAME", "Relation to erase; repeatable."),
    ],
    to: To,
    top: Annotated[
        int | None,
        option(
            CHANGE,
            "N",
            f"Number of a relation's most frequent neurons; {defaults.ERASED_NEURONS} by default, without --min-facts.",
            min=1,
        ),
    ] = None,
    min_facts: Annotated[
        int | None,
        option(CHANGE, "N", "Minimum number of a relation's facts that have an erased neuron.", min=1),
    ] = None,
    value: Annotated[
        str,
        option(CHANGE, "TOKEN", "Value of the rows: 'zero', 'unk', or a token, for its embedding."),
    ] = defaults.ERASED_VALUE,
    model: options.ModelOfNeurons = None,
    device: options.Device = None,
    dtype: options.DtypeOfNeurons = None,
    side: options.Side = None,
    check: options.Check = True,
    force: options.Force = False,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    json: options.Json = False,
) -> None:
    r"""Erase the output of the neurons that the facts of a relation have, or of several relations one after the other.

    Example:
        kn-lens edit erase --neurons neurons.json \
            --relation P36 --out erased.safetensors
    """
    neuron_source = one_neuron_source(neurons)
    check_output_path(to, facts, neuron_source, templates)
    source = read_facts(facts, format, templates, split)
    sets_by_relation: dict[str, dict[Fact, NeuronSet]] = {}
    for name in dict.fromkeys(map(source.relation_of, relation)):
        members = source.of(name)
        found = _neurons_of(neuron_source, source, members)
        own = {fact: found[fact] for fact in members if fact in found}
        if not own:
            raise DataError(f"{neuron_source} has neurons of {counted(len(found), 'fact')}, none of them of {name}.")
        sets_by_relation[name] = own
    loaded = load_for_neurons(neuron_source, model, device, dtype, side=side, force=force, check=check)

    from kn_lens.edits import erase_relation

    steps: list[WeightEdit] = []
    with ExitStack() as erased:
        for own in sets_by_relation.values():
            step = erase_relation(loaded, own, top=top, min_facts=min_facts, value=value)
            # Relations may share neurons: the next edit starts from the rows that this one leaves.
            erased.enter_context(step.applied(loaded))
            steps.append(step)
    _save("edit erase", reduce(add, steps), to, json)


@app.command(cls=Command)
def compare(
    editor: Annotated[
        list[str] | None,
        choice(EDITOR_NAMES, "Editor; repeatable; by default all that edit this kind of model", EDITORS),
    ] = None,
    moments: Annotated[
        Path | None,
        option(
            EDITORS,
            "FILE",
            "Second moments for ROME, MEMIT and AlphaEdit: a file that SecondMoments.save wrote (.safetensors), or a "
            "text file, a text a line; by default the embedded facts, a sentence each.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        option(EDITORS, "DIR", "Folder that keeps computed second moments for the next call."),
    ] = None,
    rome_layer: Annotated[
        int | None,
        option(EDITORS, "N", "Layer of ROME; by default the published one, or that of its depth.", min=0),
    ] = None,
    memit_layer: Annotated[
        list[int] | None,
        option(EDITORS, "N", "Layer of MEMIT and AlphaEdit; repeatable; by default the published ones.", min=0),
    ] = None,
    min_prompts: Annotated[
        int | None,
        option(
            EDITORS,
            "N",
            f"Minimum number of prompts that share a neuron of KN; by default {defaults.MIN_PROMPTS}, or what the fact "
            "with the fewest has.",
            min=1,
        ),
    ] = None,
    with_prefixes: Annotated[
        bool,
        flag(
            EDITORS,
            "--prefixes/--no-prefixes",
            "Five texts before a fact's first prompt, for ROME, MEMIT and AlphaEdit.",
        ),
    ] = True,
    new_object: Annotated[
        str | None,
        named_option(
            MEASURES,
            "--object",
            "TEXT",
            "New answer of all facts but those that have it; by default each fact gets the answer of another fact of "
            "its relation, drawn at random. CounterFact and KnowEdit have their own.",
        ),
    ] = None,
    sizes: Annotated[
        list[int] | None,
        named_option(MEASURES, "--size", "N", "Facts of one edit; repeatable, 1 by default."),
    ] = None,
    held_out: Annotated[
        int,
        option(MEASURES, "N", "Templates of each fact that no editor sees: its last ones.", min=0),
    ] = 1,
    wordings: Annotated[
        int | None,
        option(MEASURES, "N", "Maximum number of templates of each fact that the editors see.", min=1),
    ] = None,
    others: Annotated[
        int,
        option(MEASURES, "N", "Other facts, which should stay the same, drawn at random, in one template.", min=0),
    ] = TRIAL_OTHERS,
    n_generated: Annotated[
        int,
        option(
            MEASURES,
            "N",
            "Tokens that a causal model writes after each subject, for its fluency: the entropy of n-grams.",
            min=0,
        ),
    ] = 0,
    controls: Annotated[
        bool,
        flag(MEASURES, "--controls/--no-controls", "The same rows of change in other places, beside each edit."),
    ] = True,
    model: options.Model = "world-gpt2",
    device: options.Device = None,
    dtype: options.Dtype = defaults.DTYPE,
    check: options.Check = True,
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: Annotated[
        str | None,
        choice((*FACT_FORMATS, KNOWEDIT), "Format of the facts, detected by default", FACTS),
    ] = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: Annotated[
        int | None,
        option(
            FACTS,
            "N",
            f"Maximum number of facts of each relation, drawn at random; {COMPARED_LIMIT} by default.",
            min=1,
        ),
    ] = None,
    seed: options.Seed = 0,
    leave_out_unknown: options.LeaveOutUnknown = False,
    to: options.Out = None,
    json: options.Json = False,
) -> None:
    """Give facts new answers with several editors, and measure each edit on these and on other facts.

    The table has, for each editor and its controls, the share of prompts with the new answer on top, in the wordings
    that editors saw and in held-out ones, and the share of right answers to other facts that are lost. An edit that an
    editor refuses, as KN does where it finds no neurons, counts as no change. --out takes the effects on each fact as
    CSV, --json also the table with all measures.

    Example:
        kn-lens edit compare -r P36 --editor KN --editor FT
    """
    from dataclasses import replace

    from kn_lens.edits import (
        HELD_OUT,
        NamedEditors,
        SecondMoments,
        compare_edits,
        edit_table,
        generation_prompts,
        second_moments,
    )
    from kn_lens.hosts import host_of

    memory_budget = memory_budget_of(memory)
    named = NamedEditors(
        names=editor or (),
        rome_layer=rome_layer,
        memit_layers=memit_layer or (),
        min_prompts=min_prompts,
        with_prefixes=with_prefixes,
    )
    check_output_path(to, facts, templates, moments)
    texts: list[str] | None = None
    saved: SecondMoments | None = None
    if moments is not None and moments.suffix == MOMENTS_FILE:
        saved = SecondMoments.load(moments)
    elif moments is not None:
        texts = read_texts(moments)
    limit = limit or COMPARED_LIMIT
    format = format or _editing_format(facts)
    data: EditingData | None = None
    if format in EDITING_FORMATS:
        data = _editing_data(format, facts, templates, split, new_object)
        data = data.select(choose(FactSet(data.updates), relation, subject, limit, seed))
        source = data.others
        new_objects = dict(data.updates)
    else:
        source = read_facts(facts, format, templates, split)
        new_objects = _new_objects(choose(source, relation, subject, limit, seed), source, new_object, seed)
    sizes = sizes or [1]
    _check_sizes(sizes, len(new_objects))
    loaded = load(model, device, dtype, check=check)

    def moments_of(layers: list[int]) -> SecondMoments:
        if saved is not None:
            saved.check_for(loaded, layers)
            return saved
        with show_progress("Computing second moments", unit="texts") as progress:
            return second_moments(
                loaded, texts, layers=layers, cache=cache, memory_budget=memory_budget, progress=progress
            )

    updates, asked = _updates_and_questions(loaded, new_objects, data, held_out, wordings, leave_out_unknown)
    _check_sizes(sizes, len(updates))
    host = host_of(loaded)
    if n_generated:
        generation_prompts(host, list(updates), n_generated, None)  # raises before second moments are computed
    if min_prompts is None:
        fewest = min(len(fact.templates) for fact in updates)
        named = replace(named, min_prompts=min(defaults.MIN_PROMPTS, fewest))
    editors = named.editors(host, moments_of)
    other_prompts = _other_prompts(loaded, source, updates, others, seed) if others else None
    with show_progress("Comparing editors", unit="edits") as progress:
        effects = compare_edits(
            loaded,
            updates,
            editors,
            questions=asked,
            others=other_prompts,
            sizes=sizes,
            controls=controls,
            refused="unchanged",
            n_generated=n_generated,
            seed=seed,
            memory_budget=memory_budget,
            progress=progress,
        )
    summary = edit_table(effects, seed=seed)
    reasons = effects.loc[(effects["why"] != "") & (effects["neuron_set"] == "found")]
    document = {
        "command": "edit compare",
        "model": describe_model(loaded),
        "editors": [one.name for one in editors],
        "sizes": sizes,
        "controls": controls,
        "seed": seed,
        "n_facts": len(updates),
        "n_held_out": len(asked.get(HELD_OUT, {})),
        "n_others": 0 if other_prompts is None else len(other_prompts),
        "left_out": [fact.key for fact in new_objects if fact not in updates],
        "refused": reasons.drop_duplicates(["editor", "n_edits", "key"])[["editor", "key", "why"]].to_dict("records"),
        "table": summary.to_dict("records"),
        "facts": effects.to_dict("records"),
        "out": None if to is None else str(to),
    }
    if to is not None:
        write_whole(to, effects.to_csv(index=False))
    if json:
        print_json(document)
        return
    out.print(_editors_group(document))
    if to is not None:
        out.print(f"Effects on every fact written to {to}", soft_wrap=True)


@app.command(cls=Command)
def show(files: Edits, json: options.Json = False) -> None:
    """Print what edit files change, in which model, and how they were made.

    Example:
        kn-lens edit show tokyo.safetensors
    """
    edits = _read(files)
    documents = _documents(files, edits)
    if json:
        print_json({"command": "edit show", "edits": documents})
        return
    for document in documents:
        _print_edit(document)


@app.command(cls=Command)
def apply(
    files: Edits,
    model: ModelOfEdit = None,
    device: options.Device = None,
    dtype: DtypeOfEdit = None,
    check: options.Check = True,
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
    """Compare the answers of a model without and with edits. No file of the model is changed.

    By default, the facts are those that the edits name. --out takes the answer to each prompt as CSV.

    Example:
        kn-lens edit apply tokyo.safetensors --relation P36
    """
    check_output_path(to, facts, templates, *files)
    edits = _read(files)
    source = read_facts(facts, format, templates, split)
    if not relation and not subject:
        source = _facts_of_edits(edits, source)
    chosen = choose(source, relation, subject, limit, seed)
    edit = reduce(add, edits)
    loaded = load(model or edit.checkpoint.name, device, dtype or edit.checkpoint.dtype, check=check)
    if edit.checkpoint.side == "encoder":
        from kn_lens.hosts import host_on_side

        loaded = host_on_side(loaded, edit.checkpoint.side)
    edit.hooks(loaded)  # raises for another checkpoint, before prompts are built
    prompts = build_prompts(loaded, chosen, leave_out=leave_out_unknown)

    from kn_lens.interventions import measure

    with show_progress("Measuring", unit="prompts") as progress:
        effect = measure(
            loaded,
            prompts,
            edit,
            memory_budget=memory_budget_of(memory),
            progress=progress,
        )
    document = {
        "command": "edit apply",
        "model": describe_model(loaded),
        "edits": _documents(files, edits),
        "n_facts": len(chosen),
        "facts_without_prompts": [fact.key for fact in unqueried_facts(prompts)],
        "left_out": dict(prompts.left_out),
        "n_prompts": len(effect),
        "changed": float(cast("float", (effect["top_before"] != effect["top_after"]).mean())),
        "mean_before": float(cast("float", effect["before"].mean())),
        "mean_after": float(cast("float", effect["after"].mean())),
        "prompts": effect.to_dict("records"),
        "out": None if to is None else str(to),
    }
    if to is not None:
        write_whole(to, effect.to_csv(index=False))
    if json:
        print_json(document)
        return
    out.print(_answers_table(document))
    for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
        out.print(line, soft_wrap=True)
    if to is not None:
        out.print(f"Answers to every prompt written to {to}", soft_wrap=True)


@app.command(cls=Command)
def export(
    files: Edits,
    to: Annotated[Path, named_option(RESULT, "--out -o", "DIR", "New directory of the checkpoint.")],
    model: ModelOfEdit = None,
    device: options.Device = None,
    dtype: DtypeOfEdit = None,
    check: options.Check = True,
    json: options.Json = False,
) -> None:
    """Write the edited model as a Hugging Face checkpoint, which transformers alone can load.

    Example:
        kn-lens edit export tokyo.safetensors -o edited-model
    """
    from kn_lens.edits import check_new
    from kn_lens.edits import export as write_checkpoint

    check_new(to)
    edits = _read(files)
    checkpoint = edits[0].checkpoint
    loaded = load(model or checkpoint.name, device, dtype or checkpoint.dtype, check=check)
    with show_progress(f"Writing {to}"):
        write_checkpoint(loaded, edits, to)
    description = describe_model(loaded)
    if json:
        documents = _documents(files, edits)
        print_json(
            {
                "command": "edit export",
                "model": description,
                "edits": documents,
                "out": str(to),
            }
        )
    else:
        names = " and ".join(str(edit) for edit in edits)
        out.print(f"{description['name']} with {names} written to {to}", soft_wrap=True)


def _read(paths: Sequence[Path]) -> "list[WeightEdit]":
    from kn_lens.edits import WeightEdit

    return [WeightEdit.load(path) for path in paths]


def _neurons_of(path: Path, source: FactSet, edited: Iterable[Fact]) -> "dict[Fact, NeuronSet]":
    """Return the neurons of the facts in a file; named neurons are those of each edited fact."""
    from kn_lens.neurons import NeuronSet, match_facts

    names = named_neurons(path)
    if names:
        return dict.fromkeys(edited, NeuronSet(names))
    return match_facts(NeuronSet.read_many(path), source)


def _facts_of_edits(edits: "Sequence[WeightEdit]", source: FactSet) -> FactSet:
    """Return the updated facts and all facts of the erased relations."""
    updated = set()
    erased = set()
    for edit in edits:
        for step in edit.why:
            updated.add(step.get("fact"))
            if step.get("kind") == "erase":
                erased.add(step.get("relation"))
    facts = FactSet(fact for fact in source if fact.key in updated or fact.relation in erased)
    if not facts:
        raise ArgumentError("The edits name none of these facts. Choose some with --facts, --relation and --subject.")
    return facts


def _save(
    command: str,
    edit: "WeightEdit",
    to: Path,
    json: bool,
    results: Mapping[str, Any] | None = None,
) -> None:
    edit.save(to)
    document = {"command": command, **_document(edit), **(results or {}), "out": str(to)}
    if json:
        print_json(document)
        return
    _print_edit(document)
    if "tried" in document:
        out.print(_trial_line(document["tried"]), soft_wrap=True)
    out.print(f"Edit written to {to}; try it with: kn-lens edit apply {to}", soft_wrap=True)


def _documents(files: Sequence[Path], edits: "Sequence[WeightEdit]") -> list[dict[str, Any]]:
    documents = []
    for path, edit in zip(files, edits, strict=True):
        documents.append({"file": str(path), **_document(edit)})
    return documents


def _document(edit: "WeightEdit") -> dict[str, Any]:
    """Return the description of an edit: all but the values of its rows."""
    from dataclasses import asdict

    old = edit.old.double()
    new = edit.new.double()
    old_lengths = old.norm(dim=-1).tolist()
    new_lengths = new.norm(dim=-1).tolist()
    change_lengths = (new - old).norm(dim=-1).tolist()
    rows = []
    for i, neuron in enumerate(edit.neurons):
        rows.append(
            {
                "neuron": str(neuron),
                "layer": neuron.layer,
                **({} if neuron.expert is None else {"expert": neuron.expert}),
                "index": neuron.index,
                "length_old": old_lengths[i],
                "length_new": new_lengths[i],
                "length_change": change_lengths[i],
            }
        )
    return {
        "what": str(edit),
        "checkpoint": asdict(edit.checkpoint),
        "why": list(edit.why),
        "rows": rows,
        "row_hash": edit.row_hash,
        "digest": edit.digest,
    }


def _print_edit(document: Mapping[str, Any]) -> None:
    """Print the description of an edit and a table of its rows."""
    checkpoint = document["checkpoint"]
    out.print(document["what"], soft_wrap=True)
    out.print(
        f"of {checkpoint['name']} ({checkpoint['architecture']}, {checkpoint['dtype']})",
        soft_wrap=True,
    )
    if not checkpoint["raw"]:
        out.print(
            "of rows processed by TransformerLens: for models with the same processing",
            soft_wrap=True,
        )
    for step in document["why"]:
        details = []
        for key, value in step.items():
            if key != "kind" and value is not None:
                details.append(f"{key} {value}")
        out.print(f"{step.get('kind')}: {', '.join(details)}", soft_wrap=True)
    out.print(f"rows {document['row_hash'][:16]}, edit {document['digest'][:16]}", soft_wrap=True)
    numbers = ("|old|", "|new|", "|change|")
    rows = table("", "row", *numbers, right=numbers)
    for row in document["rows"][:ROWS_SHOWN]:
        rows.add_row(
            row["neuron"],
            number(row["length_old"], ".4g"),
            number(row["length_new"], ".4g"),
            number(row["length_change"], ".4g"),
        )
    out.print(rows)
    n_hidden = len(document["rows"]) - ROWS_SHOWN
    if n_hidden > 0:
        out.print(f"{n_hidden:,} more rows are not shown; --json contains all.")


def _answers_table(document: Mapping[str, Any]) -> Group:
    """Return the answers without and with edits."""
    edits = " and ".join(edit["what"] for edit in document["edits"])
    title = f"{document['model']['name']} with {edits}"
    numbers = ("P before", "P after")
    answers = table(title, "prompt", "answer", *numbers, "says before", "says after", right=numbers)
    for row in document["prompts"][:ROWS_SHOWN]:
        answers.add_row(
            row["text"],
            row["object"],
            number(row["before"], ".3f"),
            number(row["after"], ".3f"),
            row["top_before"],
            row["top_after"],
        )
    note = (
        f"{counted(document['n_prompts'], 'prompt')} of {counted(document['n_facts'], 'fact')}; "
        f"{document['changed']:.1%} have another answer. P(correct answer) "
        f"{document['mean_before']:.3f} before, {document['mean_after']:.3f} after."
    )
    n_hidden = len(document["prompts"]) - ROWS_SHOWN
    if n_hidden > 0:
        note += f"\n{n_hidden:,} more prompts are not shown; --out and --json contain all."
    return Group(answers, note)


def _new_objects(chosen: FactSet, source: FactSet, new_object: str | None, seed: int) -> dict[Fact, str]:
    """Return the new answer of each fact: the given one, or one drawn from the other answers of its relation.

    Raises:
        ArgumentError: no fact has another answer than the given one, or a relation has one answer alone.
    """
    import numpy as np

    if new_object is not None:
        new_objects = {fact: new_object for fact in chosen if fact.object != new_object}
        if not new_objects:
            raise ArgumentError(
                f"--object {new_object}: all {len(chosen)} facts have this answer; expected a new one, or other facts."
            )
        return new_objects
    generator = np.random.default_rng(seed)
    drawn: dict[Fact, str] = {}
    for fact in chosen:
        alike = [other for other in source if (other.relation, other.language) == (fact.relation, fact.language)]
        candidates = sorted({other.object for other in alike} - {fact.object})
        if not candidates:
            raise ArgumentError(
                f"All facts of {fact.relation_name} have the answer {fact.object!r}, so that none can be drawn. "
                "Name a new answer with --object, or choose other relations with --relation."
            )
        drawn[fact] = candidates[generator.integers(len(candidates))]
    return drawn


def _check_sizes(sizes: Sequence[int], n_facts: int) -> None:
    """Check the sizes of edits before anything is computed.

    Raises:
        ArgumentError: a size without that many facts, or one twice.
    """
    for size in sizes:
        if not 1 <= size <= n_facts:
            raise ArgumentError(f"--size {size}; expected 1 to {n_facts}, the number of facts that are edited.")
        if sizes.count(size) > 1:
            raise ArgumentError(f"--size {size} is given twice; expected each size once.")


def _updates_and_questions(
    model: Any,
    new_objects: Mapping[Fact, str],
    data: "EditingData | None",
    held_out: int,
    wordings: int | None,
    leave_out: bool,
) -> "tuple[dict[Fact, str], dict[str, Questions]]":
    """Return the updates in the templates that editors see, and groups of questions in templates that they do not.

    Only templates that take both answers count. Without a data set, which has its own questions, the last templates of
    a fact are held out; a fact with too few of them keeps one for the editors.

    Raises:
        PromptError: a fact without such a template, unless they are left out.
    """
    from dataclasses import replace

    from kn_lens.edits import HELD_OUT, Question, answerable
    from kn_lens.hosts import host_of

    host = host_of(model)
    own = {fact: Question(fact, new_object) for fact, new_object in new_objects.items()}
    with show_progress(f"Writing the prompts of {len(own):,} facts"):
        fitting = answerable(host, own)
    missing = [fact for fact in own if fact not in fitting]
    if not fitting or (missing and not leave_out):
        first = missing[0]
        raise PromptError(
            f"{counted(len(missing), 'fact')} cannot be asked in any template that takes both answers in {host.name}, "
            f"such as {first.key} -> {new_objects[first]}; expected templates that the kind of model takes, and "
            f"answers in its vocabulary. Choose other facts, or give {LEAVE_OUT_OPTION}."
        )
    updates: dict[Fact, str] = {}
    asked: dict[str, Questions] = {}
    unseen: dict[Fact, Question] = {}
    for question in fitting.values():
        usable = question.query.templates
        n_seen = len(usable) if data is not None else max(1, len(usable) - held_out)
        fact = replace(question.query, templates=usable[:n_seen][:wordings])
        updates[fact] = question.answer
        if usable[n_seen:]:
            unseen[fact] = Question(replace(fact, templates=usable[n_seen:]), question.answer)
    if unseen:
        asked[HELD_OUT] = unseen
    if data is not None:
        for name, group in data.select(updates).questions.items():
            kept = answerable(host, group)
            if kept:
                asked[name] = kept
    return updates, asked


def _editing_format(source: str) -> str | None:
    """Return the format of a data set for editing, judged by the first bytes of a JSON file; None for other sources."""
    if Path(source).suffix != ".json":
        return None
    if detect_format(source) == COUNTERFACT:
        return COUNTERFACT
    return KNOWEDIT if '"target_new"' in head_of(Path(source)) else None


def _editing_data(
    format: str, source: str, templates: Path | None, split: str, new_object: str | None
) -> "EditingData":
    """Read a data set for editing.

    Raises:
        ArgumentError: an option is given that such a data set has no use for.
        DataError: the file cannot be read.
    """
    from kn_lens.edits import EditingData

    if new_object is not None:
        raise ArgumentError(f"--object is for facts without new answers; {source} has its own. Omit --object.")
    if templates is not None or split != defaults.SPLIT:
        raise ArgumentError(f"--templates and --split are for other facts; those of {source} have their own templates.")
    if format == COUNTERFACT:
        return EditingData.from_counterfact(source)
    return EditingData.from_knowedit(source)


def _other_prompts(model: Any, source: FactSet, edited: Iterable[Fact], n: int, seed: int) -> "PromptBatch | None":
    """Return a prompt of each of so many other facts; None if there are none that the model can be queried with."""
    from kn_lens.prompts import first_prompts

    changed = set()
    for fact in edited:
        changed.add((fact.relation, "subject", fact.subject))
        if fact.language and fact.uid:
            changed.add((fact.relation, "uid", fact.uid))  # its versions in other languages
    others = FactSet(
        fact
        for fact in source
        if fact.templates
        and (fact.relation, "subject", fact.subject) not in changed
        and (fact.relation, "uid", fact.uid) not in changed
    )
    sample = others.sample(min(n, len(others)), seed)
    try:
        return first_prompts(build_prompts(model, sample, leave_out=True))
    except PromptError:
        return None


def _editors_group(document: Mapping[str, Any]) -> Group:
    """Return the measures of each editor beside its controls."""
    from kn_lens.edits import HELD_OUT, OWN

    value_of: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    labels: dict[tuple[str, int, str], None] = {}  # in order, each once
    for row in document["table"]:
        label = (row["editor"], row["n_edits"], row["neuron_set"])
        labels[label] = None
        value_of[(*label, row["question"], row["measure"])] = row
    lost: dict[tuple[str, int, str], list[float]] = {}
    for row in document["facts"]:
        if row["question"] == OWN and not is_missing(row["disturbed"]):
            lost.setdefault((row["editor"], row["n_edits"], row["neuron_set"]), []).append(row["disturbed"])
    numbers = ["facts", "new answer", "held out", "others lost"]
    has_fluency = any(row["measure"] == "fluency" for row in document["table"])
    if has_fluency:
        numbers.append("fluency")
    result = table(document["model"]["name"], "editor", "rows of change", *numbers, right=numbers)
    for label in labels:
        own = value_of[(*label, OWN, "success")]
        asked = value_of.get((*label, HELD_OUT, "success"))
        of_label = lost.get(label)
        written = value_of.get((*label, OWN, "fluency"))
        fluency = [] if written is None else [f"{number(written['value'], '.2f')} {interval(written, '.2f')}"]
        result.add_row(
            label[0] if label[2] == "found" else "",
            PLACES[label[2]],
            str(label[1]),
            _share(own),
            "-" if asked is None else _share(asked),
            "-" if of_label is None else f"{sum(of_label) / len(of_label):.1%}",
            *fluency,
        )
    note = (
        f"{counted(document['n_facts'], 'fact')}, {document['n_held_out']:,} of them with held-out wordings; "
        f"{counted(document['n_others'], 'prompt')} of other facts. facts: those of one edit. new answer, held out: "
        "share of prompts with the new answer on top, with 95% bootstrap intervals over facts. others lost: share of "
        "the right answers to other facts that an edit takes away."
    )
    if has_fluency:
        before = next(row for row in document["table"] if row["measure"] == "fluency_before")
        note += f" fluency: entropy of n-grams in bits; {number(before['value'], '.2f')} before the edits."
    if document["left_out"]:
        note += f"\nLeft out: {counted(len(document['left_out']), 'fact')} without a template that takes both answers."
    if document["refused"]:
        first = document["refused"][0]
        note += f"\nRefused, and measured unchanged: {counted(len(document['refused']), 'edit')}. {first['why']}"
    return Group(result, note)


def _share(row: Mapping[str, Any]) -> str:
    return f"{number(row['value'], '.1%')} {interval(row, '.1f', 100)}"


def _trial(
    model: Any,
    edit: "WeightEdit",
    fact: Fact,
    new_object: str,
    source: FactSet,
) -> dict[str, Any]:
    """Measure an update on all prompts of its fact and on the first prompt of other facts.

    Returns:
        ``success``: share of the fact's ``n_prompts`` prompts with the new answer on top. ``disturbed``: share of the
        ``n_others`` correct answers to other facts that are lost; NaN if there are none.
    """
    from dataclasses import replace

    from kn_lens.edits import MAX_DISTURBED
    from kn_lens.interventions import measure

    own = build_prompts(model, FactSet([replace(fact, object=new_object)]), leave_out=True)
    n_correct = n_lost = 0
    with show_progress("Trying the update", unit="prompts") as progress:
        effect = measure(model, own, edit, progress=progress)
        prompts = _other_prompts(model, source, [fact], TRIAL_OTHERS, TRIAL_SEED)
        if prompts is not None:
            side_effect = measure(model, prompts, edit, progress=progress)
            was_correct = side_effect["rank_before"] == 0
            n_correct = int(was_correct.to_numpy().sum())
            n_lost = int((was_correct & (side_effect["rank_after"] != 0)).to_numpy().sum())
    disturbed = n_lost / n_correct if n_correct else float("nan")
    return {
        "n_prompts": len(effect),
        "success": float(cast("float", (effect["rank_after"] == 0).mean())),
        "n_others": n_correct,
        "disturbed": disturbed,
        "disturbs": disturbed > MAX_DISTURBED,
        "max_disturbed": MAX_DISTURBED,
    }


def _trial_line(trial: Mapping[str, Any]) -> str:
    """Return the result of a trial as a sentence."""
    success = f"The new answer is on top in {trial['success']:.1%} of {trial['n_prompts']} prompts of the fact"
    if not trial["n_others"]:
        return f"{success}; no answer to another fact is correct, so side effects are unknown."
    return f"{success}; of {trial['n_others']} correct answers to other facts, {trial['disturbed']:.1%} are lost."


def _warn_about_trial(trial: Mapping[str, Any]) -> None:
    """Warn on stderr about an update without effect, or with large side effects."""
    if trial["success"] == 0:
        err.print(
            f"kn-lens: the new answer is on top in none of {trial['n_prompts']} prompts; try "
            f"another --lambda-new, such as half or twice. {STRENGTH_ADVICE}.",
            soft_wrap=True,
        )
    if trial["disturbs"]:
        err.print(
            f"kn-lens: the edit removes {trial['disturbed']:.0%} of {trial['n_others']} correct "
            f"answers to other facts, more than {trial['max_disturbed']:.0%}; try a smaller "
            f"--lambda-new. {STRENGTH_ADVICE}.",
            soft_wrap=True,
        )
