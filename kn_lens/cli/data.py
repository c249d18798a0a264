"""``kn-lens data``: reading, conversion and checks of fact files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from kn_lens._core import defaults
from kn_lens._core.wording import counted
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, detect_format, read_facts
from kn_lens.cli._help import Command, CommandGroup, help_without_subcommand
from kn_lens.cli._options import check_output_path, named_option
from kn_lens.cli._run import build_prompts, describe_model, load, unqueried_facts
from kn_lens.cli._tables import ROWS_SHOWN, left_out_lines, table
from kn_lens.cli._terminal import out, print_json
from kn_lens.facts import FactSet, relation_name

MIN_TEMPLATES = 4
"""The paper excludes relations with fewer templates."""
NAMES_SHOWN = 5
"""Examples in a finding."""

app = typer.Typer(
    cls=CommandGroup,
    help="""Read, convert and check fact files.

Example:
    kn-lens data check facts.csv --model world-gpt2""",
    callback=help_without_subcommand,
    invoke_without_command=True,
)


@app.command(cls=Command)
def read(
    source: options.Source,
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    json: options.Json = False,
) -> None:
    """Count facts, relations and templates.

    An unreadable file is rejected as a whole, with the line of its first error.

    Example:
        kn-lens data read facts.jsonl
    """
    facts = choose(read_facts(source, format, templates, split), relation, subject, None, 0)
    document = {
        "command": "data read",
        "source": source,
        "format": format or detect_format(source),
        **_summary(facts),
    }
    if json:
        print_json(document)
    else:
        out.print(_data_table(document))


@app.command(cls=Command)
def convert(
    source: options.Source,
    to: Annotated[Path, named_option(None, "--out -o", "FILE", "Output file, JSON lines.")],
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    r"""Write facts with their templates as JSON lines, the format that every other command reads.

    Example:
        kn-lens data convert pararel/ --templates kn_lens \
            --out facts.jsonl
    """
    check_output_path(to, source, templates)
    facts = choose(read_facts(source, format, templates, split), relation, subject, limit, seed)
    facts.to_jsonl(to)
    if json:
        print_json({"command": "data convert", "source": source, "out": str(to), **_summary(facts)})
    else:
        out.print(
            f"{counted(len(facts), 'fact')} of {counted(len(facts.relations), 'relation')} written to {to}",
            soft_wrap=True,
        )


@app.command(cls=Command)
def check(
    source: options.Source,
    model: Annotated[
        str | None,
        named_option(None, "--model -m", "NAME", "Model whose vocabulary the answers are checked against."),
    ] = None,
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    json: options.Json = False,
) -> None:
    """Check facts for likely problems: too few templates, several answers to one question, unknown answers.

    Findings are not errors: the exit code is 0 if the facts can be read.

    Example:
        kn-lens data check facts.csv --model world-gpt2
    """
    facts = choose(read_facts(source, format, templates, split), relation, subject, None, 0)
    document: dict[str, Any] = {
        "command": "data check",
        "source": source,
        "format": format or detect_format(source),
        **_summary(facts),
        "findings": _findings(facts),
    }
    if model is not None:
        loaded = load(model, None, defaults.DTYPE)
        prompts = build_prompts(loaded, facts, leave_out=True)
        unqueried = [fact.key for fact in unqueried_facts(prompts)]
        document |= {
            "model": describe_model(loaded),
            "n_prompts": len(prompts),
            "n_facts_without_prompts": len(unqueried),
            "facts_without_prompts": unqueried,
            "left_out": dict(prompts.left_out),
        }
    if json:
        print_json(document)
        return
    out.print(_data_table(document))
    for finding in document["findings"]:
        out.print(f"- {finding}", soft_wrap=True)
    if not document["findings"]:
        out.print("No findings.")
    if model is not None:
        out.print(f"{model}: {counted(document['n_prompts'], 'prompt')}", soft_wrap=True)
        for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
            out.print(line, soft_wrap=True)


def _summary(facts: FactSet) -> dict[str, Any]:
    """Return the numbers of facts, templates and prompts (pairs of fact and template), in total and by relation."""
    relations: dict[str, dict[str, Any]] = {}
    templates: dict[str, set[str]] = {}
    for fact in facts:
        row = relations.setdefault(
            fact.relation,
            {
                "label": "",
                "facts": 0,
                "templates": 0,
                "pairs": 0,
                "example": "",
            },
        )
        row["label"] = row["label"] or fact.relation_label
        row["facts"] += 1
        row["pairs"] += len(fact.templates)
        row["example"] = row["example"] or f"{fact.subject or '-'}: {fact.object}"
        templates.setdefault(fact.relation, set()).update(fact.templates)
    for relation, row in relations.items():
        row["templates"] = len(templates[relation])
    return {
        "n_facts": len(facts),
        "n_relations": len(relations),
        "n_pairs": sum(row["pairs"] for row in relations.values()),
        "relations": relations,
    }


def _findings(facts: FactSet) -> list[str]:
    """Return descriptions of likely problems in readable facts."""
    without_template = []
    copied = []
    max_templates: dict[str, int] = {}
    n_answers: Counter[tuple[str, str, str]] = Counter()
    for fact in facts:
        if not fact.templates:
            without_template.append(f"{fact.relation} {fact.subject}")
        if fact.object in fact.subject:
            copied.append(f"{fact.subject}: {fact.object}")
        if fact.subject:
            n_answers[fact.relation, fact.subject, fact.language] += 1
        max_templates[fact.relation] = max(max_templates.get(fact.relation, 0), len(fact.templates))
    few = [f"{relation} ({n})" for relation, n in max_templates.items() if 0 < n < MIN_TEMPLATES]
    several = [f"{subject} ({relation})" for (relation, subject, _), n in n_answers.items() if n > 1]
    problems = {
        "Facts without a template, which have no prompt": without_template,
        f"Relations with fewer than {MIN_TEMPLATES} templates, the paper's minimum": few,
        "Questions with several answers, each of which will count as the only correct one": several,
        "Facts whose subject contains the answer, so that it can be copied": copied,
    }
    return [_finding(problem, names) for problem, names in problems.items() if names]


def _finding(problem: str, names: Sequence[str]) -> str:
    examples = ", ".join(names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        examples += f" and {len(names) - NAMES_SHOWN:,} more"
    return f"{problem} ({len(names):,}): {examples}"


def _data_table(document: Mapping[str, Any]) -> Group:
    """Return the counts of a source of facts, by relation."""
    numbers = ("facts", "templates", "pairs")
    title = f"{document['source']} ({document['format']})"
    rows = table(title, "relation", *numbers, "first fact", right=numbers)
    relations = list(document["relations"].items())
    for relation, row in relations[:ROWS_SHOWN]:
        counts = [f"{row[name]:,}" for name in numbers]
        rows.add_row(relation_name(relation, row["label"]), *counts, row["example"])
    note = (
        f"{counted(document['n_facts'], 'fact')} of {counted(document['n_relations'], 'relation')}, "
        f"{counted(document['n_pairs'], 'pair')} of a fact and a template."
    )
    n_hidden = len(relations) - ROWS_SHOWN
    if n_hidden > 0:
        note += f"\n{n_hidden:,} more relations are not shown; --json contains all."
    return Group(rows, note)
