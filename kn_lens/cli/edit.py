"""``kn-lens edit``: make edits of weights, look at them, try them, and write the edited model."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Group

from kn_lens._whole_files import write_whole
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, read_facts
from kn_lens.cli._options import DTYPES, MODEL, RESULT, check_out, choice, option
from kn_lens.cli._run import ask, described, in_bytes, load, load_for
from kn_lens.cli._strength import say_of_trial, trial
from kn_lens.cli._tables import ROWS_SHOWN, left_out_lines, neuron_names, number, table
from kn_lens.cli._terminal import out, print_json, working
from kn_lens.edit_forms import CHOSEN_LAMBDAS, FORMS, Scaling, checked_form
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.neuron_sets import NeuronSet
    from kn_lens.weight_edits import WeightEdit

HOW = "How rows are changed"
OLD, NEW = (f"{lambda_:g} unless given" for lambda_ in CHOSEN_LAMBDAS)
NEW_OF_PRESETS = f"{FORMS['paper'].lambdas[1]:g} with --preset"

app = typer.Typer(
    help="Make edits of weights, look at them, try them, and write the edited model.",
    callback=options.help_if_bare,
    invoke_without_command=True,
)

Neurons = Annotated[
    Path, typer.Option("--neurons", "-n", metavar="FILE", help="Neuron file, such as `kn-lens find` writes.")
]
Edits = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Edit files, applied in this order.")]
To = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="Edit file to write.", rich_help_panel=RESULT)
]  # fmt: skip
ModelOfEdit = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME", help="Which model; that of the edit unless given.", rich_help_panel=MODEL
    ),
]
DtypeOfEdit = Annotated[
    str | None, choice(DTYPES, "Type to load the weights in; that of the edit unless given", MODEL)
]  # fmt: skip


@app.command()
def update(
    neurons: Neurons,
    new_object: Annotated[str, typer.Option("--object", metavar="TEXT", help="What the answer is to become.")],
    to: To,
    lambda_old: Annotated[
        float | None, option(HOW, "X", f"How much of the old answer's embedding is taken away; {OLD}.")
    ] = None,
    lambda_new: Annotated[
        float | None, option(HOW, "X", f"How much of the new answer's embedding is added; {NEW}, {NEW_OF_PRESETS}.")
    ] = None,
    preset: Annotated[
        str | None,
        choice(tuple(FORMS), "The form of the paper or of its released code, instead of the next two", HOW),
    ] = None,
    scaling: Annotated[
        str, choice(get_args(Scaling), "Lambdas count lengths of the row, or of the embedding", HOW)
    ] = "norm",
    signed: Annotated[
        bool,
        typer.Option(
            "--signed/--unsigned", help="Turn the change round for neurons that fire below zero.", rich_help_panel=HOW
        ),
    ] = True,
    max_share: Annotated[
        float, option(HOW, "P", "Leave neurons alone that more of the relation's facts have.", min=0.0, max=1.0)
    ] = 0.1,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Also a fact that the model does not know.", rich_help_panel=HOW)
    ] = False,
    model: options.ModelOfNeurons = None,
    device: options.Device = None,
    dtype: options.DtypeOfNeurons = None,
    force: options.Force = False,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relation: options.Relations = None,
    subject: options.Subjects = None,
    json: options.Json = False,
) -> None:
    """Give one fact, chosen by --subject and --relation, another answer.

    The edit is tried on the fact and on a hundred others of the same facts, and what it does to them is told.
    """
    check_out(to, facts, neurons, templates)
    old, new = checked_form(None, preset, scaling, signed).lambdas  # type: ignore[arg-type]  # one of Scaling
    source = read_facts(facts, format, templates, split)
    chosen = choose(source, relation, subject, None, 0)
    if len(chosen) != 1:
        raise ArgumentError(f"{len(chosen)} facts are chosen; expected one, by --subject and --relation.")
    found = _sets(neurons, source)
    if chosen[0] not in found:
        raise DataError(f"{neurons} has no neurons of {chosen[0].key}; find them with `kn-lens find`.")
    loaded = load_for(neurons, model, device, dtype, force=force)

    from kn_lens.edits import update_fact

    edit = update_fact(
        loaded,
        chosen[0],
        new_object,
        found[chosen[0]],
        lambdas=(old if lambda_old is None else lambda_old, new if lambda_new is None else lambda_new),
        preset=preset,  # type: ignore[arg-type]  # one of FORMS
        scaling=scaling,  # type: ignore[arg-type]  # one of Scaling
        signed=signed,
        neurons_by_fact=found,
        max_share=max_share,
        allow_unknown=allow_unknown,
    )
    tried = trial(loaded, edit, chosen[0], new_object, source)
    _finish("edit update", edit, to, json, {"tried": tried})
    say_of_trial(tried)


@app.command()
def erase(
    neurons: Neurons,
    relation: Annotated[str, typer.Option("--relation", "-r", metavar="NAME", help="The relation to erase.")],
    to: To,
    top: Annotated[
        int | None, option(HOW, "N", "So many of its most frequent neurons; 20 unless --min-facts is given.", min=1)
    ] = None,
    min_facts: Annotated[int | None, option(HOW, "N", "Those that so many of its facts have.", min=1)] = None,
    value: Annotated[
        str, option(HOW, "TOKEN", "What rows become: 'zero', 'unk', or a token, for its embedding.")
    ] = "zero",
    model: options.ModelOfNeurons = None,
    device: options.Device = None,
    dtype: options.DtypeOfNeurons = None,
    force: options.Force = False,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    json: options.Json = False,
) -> None:
    """Erase what the neurons of a relation's facts write."""
    check_out(to, facts, neurons, templates)
    source = read_facts(facts, format, templates, split)
    members = source.of(relation)
    found = _sets(neurons, source)
    own = {fact: found[fact] for fact in members if fact in found}
    if not own:
        raise DataError(f"{neurons} has neurons of {len(found)} facts, none of them of {relation}.")
    loaded = load_for(neurons, model, device, dtype, force=force)

    from kn_lens.edits import erase_relation

    _finish("edit erase", erase_relation(loaded, own, top=top, min_facts=min_facts, value=value), to, json)


@app.command()
def show(edits: Edits, json: options.Json = False) -> None:
    """Say what edit files change, in which model, and why."""
    read = _read(edits)
    documents = [{"file": str(path), **document(edit)} for path, edit in zip(edits, read, strict=True)]
    if json:
        print_json({"command": "edit show", "edits": documents})
        return
    for one in documents:
        print_edit(one)


@app.command()
def apply(
    edits: Edits,
    model: ModelOfEdit = None,
    device: options.Device = None,
    dtype: DtypeOfEdit = None,
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
    """Try edits: what a model answers without and with them. No file of the model is changed.

    The facts are those that the edits name, unless others are chosen; --out takes the answer to every prompt as CSV.
    """
    check_out(to, facts, templates, *edits)
    read = _read(edits)
    source = read_facts(facts, format, templates, split)
    asked = source if relation or subject else _named(read, source)
    asked = choose(asked, relation, subject, limit, seed)
    edit = reduce(add, read)
    loaded = load(model or edit.checkpoint.name, device, dtype or edit.checkpoint.dtype)
    edit.hooks(loaded)  # refuses another checkpoint before prompts are written
    prompts = ask(loaded, asked, leave_out=leave_out_unknown)

    from kn_lens.effects import measure

    with working("Measuring", unit="prompts") as progress:
        effect = measure(loaded, prompts, edit, memory_budget=in_bytes(memory), progress=progress)
    result = {
        "command": "edit apply",
        "model": described(loaded),
        "edits": [{"file": str(path), **document(one)} for path, one in zip(edits, read, strict=True)],
        "n_facts": len(asked),
        "facts_without_prompts": [fact.key for fact, n in prompts.prompts_per_fact().items() if not n],
        "left_out": dict(prompts.left_out),
        **_summary(effect),
        "prompts": effect.to_dict("records"),
        "out": None if to is None else str(to),
    }
    if to is not None:
        write_whole(to, effect.to_csv(index=False))
    if json:
        print_json(result)
        return
    out.print(applied_table(result))
    for line in left_out_lines(result["left_out"], result["facts_without_prompts"]):
        out.print(line, soft_wrap=True)
    if to is not None:
        out.print(f"Answers to every prompt written to {to}", soft_wrap=True)


@app.command()
def export(
    edits: Edits,
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Directory to make.", rich_help_panel=RESULT)],
    model: ModelOfEdit = None,
    device: options.Device = None,
    dtype: DtypeOfEdit = None,
    json: options.Json = False,
) -> None:
    """Write the edited model as a Hugging Face checkpoint, which loads with transformers alone."""
    from kn_lens.exporting import check_new
    from kn_lens.exporting import export as write

    check_new(to)
    read = _read(edits)
    loaded = load(model or read[0].checkpoint.name, device, dtype or read[0].checkpoint.dtype)
    with working(f"Writing {to}"):
        write(loaded, read, to)
    if json:
        listed = [{"file": str(path), **document(one)} for path, one in zip(edits, read, strict=True)]
        print_json({"command": "edit export", "model": described(loaded), "edits": listed, "out": str(to)})
    else:
        out.print(f"{described(loaded)['name']} with {' and '.join(map(str, read))} written to {to}", soft_wrap=True)


def document(edit: "WeightEdit") -> dict[str, Any]:
    """Return what an edit is, without its rows."""
    from dataclasses import asdict

    old, new = edit.old.double(), edit.new.double()
    lengths = {
        f"length_{name}": rows.norm(dim=-1).tolist()
        for name, rows in {"old": old, "new": new, "change": new - old}.items()
    }
    return {
        "what": str(edit),
        "checkpoint": asdict(edit.checkpoint),
        "why": list(edit.why),
        "rows": [
            {"layer": neuron.layer, "index": neuron.index, **{name: values[i] for name, values in lengths.items()}}
            for i, neuron in enumerate(edit.neurons)
        ],
        "row_hash": edit.row_hash,
        "digest": edit.digest,
    }


def print_edit(edit: Mapping[str, Any]) -> None:
    """Print what an edit is, and a table of its rows."""
    made_of = edit["checkpoint"]
    lines = [edit["what"], f"of {made_of['name']} ({made_of['architecture']}, {made_of['dtype']})"]
    if not made_of["raw"]:
        lines.append("of rows that TransformerLens had processed: for models that are processed alike")
    for step in edit["why"]:
        listed = ", ".join(f"{key} {value}" for key, value in step.items() if key != "kind" and value is not None)
        lines.append(f"{step.get('kind')}: {listed}")
    lines.append(f"rows {edit['row_hash'][:16]}, edit {edit['digest'][:16]}")
    for line in lines:
        out.print(line, soft_wrap=True)
    numbers = ("|old|", "|new|", "|change|")
    rows = table("", "row", *numbers, right=numbers)
    for row in edit["rows"][:ROWS_SHOWN]:
        lengths = (row[f"length_{which}"] for which in ("old", "new", "change"))
        rows.add_row(neuron_names([(row["layer"], row["index"])]), *(number(length, ".4g") for length in lengths))
    out.print(rows)
    hidden = len(edit["rows"]) - ROWS_SHOWN
    if hidden > 0:
        out.print(f"{hidden:,} more rows are not shown; --json has them all.")


def applied_table(result: Mapping[str, Any]) -> Group:
    """Return the answers without and with edits."""
    title = f"{result['model']['name']} with " + " and ".join(edit["what"] for edit in result["edits"])
    numbers = ("P before", "P after")
    answers = table(title, "prompt", "answer", *numbers, "says before", "says after", right=numbers)
    for row in result["prompts"][:ROWS_SHOWN]:
        probabilities = (number(row["before"], ".3f"), number(row["after"], ".3f"))
        answers.add_row(row["text"], row["object"], *probabilities, row["top_before"], row["top_after"])
    hidden = len(result["prompts"]) - ROWS_SHOWN
    note = (
        f"{result['n_prompts']:,} prompts of {result['n_facts']:,} facts; another answer to {result['changed']:.1%}. "
        f"P(right answer) {result['mean_before']:.3f} before, {result['mean_after']:.3f} after."
        + (f"\n{hidden:,} more prompts are not shown; --out and --json have them all." if hidden > 0 else "")
    )
    return Group(answers, note)


def _summary(effect: "pd.DataFrame") -> dict[str, Any]:
    return {
        "n_prompts": len(effect),
        "changed": float((effect["top_before"] != effect["top_after"]).mean()),
        "mean_before": float(effect["before"].mean()),
        "mean_after": float(effect["after"].mean()),
    }


def _read(paths: Sequence[Path]) -> "list[WeightEdit]":
    from kn_lens.weight_edits import WeightEdit

    return [WeightEdit.load(path) for path in paths]


def _sets(path: Path, source: FactSet) -> "dict[Fact, NeuronSet]":
    from kn_lens.neuron_sets import NeuronSet, match_facts

    return match_facts(NeuronSet.read_many(path), source)


def _named(edits: "Sequence[WeightEdit]", source: FactSet) -> FactSet:
    """Return the facts, and all facts of the relations, that edits were made for."""
    steps = [step for edit in edits for step in edit.why]
    keys = {step.get("fact") for step in steps}
    erased = {step.get("relation") for step in steps if step.get("kind") == "erase"}
    named = FactSet(fact for fact in source if fact.key in keys or fact.relation in erased)
    if not named:
        raise ArgumentError("The edits name none of these facts; choose some by --facts, --relation and --subject.")
    return named


def _tried_line(tried: Mapping[str, Any]) -> str:
    """Return what a trial of an update says, in words."""
    reached = f"The new answer is on top in {tried['success']:.1%} of {tried['n_prompts']} prompts of the fact"
    if not tried["n_others"]:
        return f"{reached}; there is no right answer to another fact to look at."
    return f"{reached}; of {tried['n_others']} right answers to other facts {tried['disturbed']:.1%} are lost."


def _finish(command: str, edit: "WeightEdit", to: Path, json: bool, more: Mapping[str, Any] | None = None) -> None:
    edit.save(to)
    result = {"command": command, **document(edit), **(more or {}), "out": str(to)}
    if json:
        print_json(result)
        return
    print_edit(result)
    if "tried" in result:
        out.print(_tried_line(result["tried"]), soft_wrap=True)
    out.print(f"Edit written to {to}; try it with: kn-lens edit apply {to}", soft_wrap=True)
