"""``kn-lens edit``: weight edits, their effects, and the edited model as a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Group

from kn_lens._core import defaults
from kn_lens._core.advice import STRENGTH_ADVICE
from kn_lens._core.atomic import write_whole
from kn_lens._core.names import DTYPES, UPDATE_FORMS, Scaling
from kn_lens._core.wording import counted
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, read_facts
from kn_lens.cli._help import Command, CommandGroup, help_without_subcommand
from kn_lens.cli._options import MODEL, RESULT, check_output_path, choice, flag, named_option, option
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
from kn_lens.cli._tables import ROWS_SHOWN, left_out_lines, number, table
from kn_lens.cli._terminal import err, out, print_json, show_progress
from kn_lens.errors import ArgumentError, DataError, PromptError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    from kn_lens.edits import WeightEdit
    from kn_lens.neurons import NeuronSet

CHANGE = "Change of the rows"
TRIAL_OTHERS = 100
"""Other facts in the trial of an update, each in one template."""
TRIAL_SEED = 0
"""Advice of all messages about the strength of updates."""

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

    import torch

    from kn_lens.edits import MAX_DISTURBED
    from kn_lens.interventions import measure

    own = build_prompts(model, FactSet([replace(fact, object=new_object)]), leave_out=True)
    others = FactSet(
        other
        for other in source
        if other.templates and (other.relation, other.subject) != (fact.relation, fact.subject)
    )
    n_correct = n_lost = 0
    with show_progress("Trying the update", unit="prompts") as progress:
        effect = measure(model, own, edit, progress=progress)
        # There may be no other facts, or none that the model can be queried with.
        with suppress(PromptError):
            sample = others.sample(min(TRIAL_OTHERS, len(others)), TRIAL_SEED)
            prompts = build_prompts(model, sample, leave_out=True)
            fact_index = prompts.fact_index.tolist()
            first = [fact_index.index(number) for number in dict.fromkeys(fact_index)]
            prompts = prompts.select(torch.tensor(first, device=prompts.tokens.device))
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
