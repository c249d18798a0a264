"""``kn-lens data``: read, convert and check files of facts."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, format_of, read_facts
from kn_lens.cli._options import check_out
from kn_lens.cli._run import ask, described, load
from kn_lens.cli._tables import data_table, left_out_lines
from kn_lens.cli._terminal import out, print_json
from kn_lens.facts import FactSet

MIN_TEMPLATES = 4
"""Relations with fewer templates are left out of the paper."""

app = typer.Typer(
    help="Read, convert and check files of facts.", callback=options.help_if_bare, invoke_without_command=True
)


@app.command()
def read(
    source: options.Source,
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relation: options.Relations = None,
    subject: options.Subjects = None,
    json: options.Json = False,
) -> None:
    """Count facts, relations and templates.

    A file that cannot be read is refused whole, with the place of what is wrong in it.
    """
    facts = choose(read_facts(source, format, templates, split), relation, subject, None, 0)
    document = {"command": "data read", "source": source, "format": format or format_of(source), **summary(facts)}
    if json:
        print_json(document)
    else:
        out.print(data_table(document))


@app.command()
def convert(
    source: options.Source,
    to: Annotated[Path, typer.Option("--out", "-o", help="JSON-lines file to write.")],
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Write facts, with their templates, as JSON lines that every other command reads."""
    check_out(to, source, templates)
    facts = choose(read_facts(source, format, templates, split), relation, subject, limit, seed)
    facts.to_jsonl(to)
    if json:
        print_json({"command": "data convert", "source": source, "out": str(to), **summary(facts)})
    else:
        out.print(f"{len(facts):,} facts of {len(facts.relations)} relations written to {to}", soft_wrap=True)


@app.command()
def check(
    source: options.Source,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also count the prompts that this model can be asked.")
    ] = None,
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relation: options.Relations = None,
    subject: options.Subjects = None,
    json: options.Json = False,
) -> None:
    """Look for what will make trouble later: too few templates, several answers to one question, unknown answers.

    Findings are not errors: the exit code is 0 when the facts can be read.
    """
    facts = choose(read_facts(source, format, templates, split), relation, subject, None, 0)
    document: dict[str, Any] = {
        "command": "data check",
        "source": source,
        "format": format or format_of(source),
        **summary(facts),
        "findings": findings(facts),
    }
    if model is not None:
        loaded = load(model, None, "float32")
        prompts = ask(loaded, facts, leave_out=True)
        without = [fact.key for fact, n in prompts.prompts_per_fact().items() if not n]
        document |= {
            "model": described(loaded),
            "n_prompts": len(prompts),
            "n_facts_without_prompts": len(without),
            "facts_without_prompts": without,
            "left_out": dict(prompts.left_out),
        }
    if json:
        print_json(document)
        return
    out.print(data_table(document))
    for finding in document["findings"]:
        out.print(f"- {finding}", soft_wrap=True)
    if not document["findings"]:
        out.print("No findings.")
    if model is not None:
        out.print(f"{model}: {document['n_prompts']:,} prompts", soft_wrap=True)
        for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
            out.print(line, soft_wrap=True)


def summary(facts: FactSet) -> dict[str, Any]:
    """Count facts, templates and prompts (fact-template pairs), in all and by relation."""
    by_relation: dict[str, dict[str, Any]] = {}
    templates: dict[str, set[str]] = {}
    for fact in facts:
        row = by_relation.setdefault(fact.relation, {"facts": 0, "templates": 0, "pairs": 0, "example": ""})
        row["facts"] += 1
        row["pairs"] += len(fact.templates)
        row["example"] = row["example"] or f"{fact.subject or '-'}: {fact.object}"
        templates.setdefault(fact.relation, set()).update(fact.templates)
    for relation, row in by_relation.items():
        row["templates"] = len(templates[relation])
    return {
        "n_facts": len(facts),
        "n_relations": len(by_relation),
        "n_pairs": sum(len(fact.templates) for fact in facts),
        "relations": by_relation,
    }


def findings(facts: FactSet) -> list[str]:
    """Say what is readable and yet likely to make trouble."""
    found = []
    bare = [f"{fact.relation} {fact.subject}" for fact in facts if not fact.templates]
    if bare:
        found.append(_some("Facts without a template, of which no prompt can be made", bare))
    few = [f"{name} ({n})" for name, n in _most_templates(facts).items() if 0 < n < MIN_TEMPLATES]
    if few:
        found.append(_some(f"Relations with fewer than {MIN_TEMPLATES} templates, the paper's least", few))
    answers = Counter((fact.relation, fact.subject) for fact in facts if fact.subject)
    several = [f"{subject} ({relation})" for (relation, subject), n in answers.items() if n > 1]
    if several:
        found.append(_some("Questions with several answers, each of which will count as the only right one", several))
    inside = [f"{fact.subject}: {fact.object}" for fact in facts if fact.object in fact.subject]
    if inside:
        found.append(_some("Facts whose subject holds the answer, so that it can be copied", inside))
    return found


def _most_templates(facts: FactSet) -> Mapping[str, int]:
    most: dict[str, int] = {}
    for fact in facts:
        most[fact.relation] = max(most.get(fact.relation, 0), len(fact.templates))
    return most


def _some(what: str, names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
    return f"{what} ({len(names):,}): {shown}"
