"""How results look in a terminal. Each function takes the document that ``--json`` prints, and computes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from kn_lens._draws import WHY_NONE
from kn_lens._shown import escaped

ROWS_SHOWN = 40
FACTS_NAMED = 8
CONTROLS = {"found": "knowledge neurons", "activation": "most active", "random": "random"}


class OfLines(Table):
    r"""A table in which a text is one line: line breaks in names are shown as ``\n``, as all that a terminal obeys."""

    def add_column(self, header: Any = "", *args: Any, **how: Any) -> None:
        """Add a column, with an escaped header."""
        super().add_column(escaped(header) if isinstance(header, str) else header, *args, **how)

    def add_row(self, *cells: Any, **how: Any) -> None:
        """Add a row of escaped cells."""
        super().add_row(*(escaped(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the house style; the columns named in ``right`` hold numbers."""
    made = OfLines(title=escaped(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def neuron_names(pairs: Sequence[Sequence[int]], limit: int = 6) -> str:
    """Return ``L3N412 L3N77 ...``."""
    names = [f"L{layer}N{index}" for layer, index in pairs]
    return " ".join(names[:limit]) + (f" +{len(names) - limit}" if len(names) > limit else "") or "none"


def number(value: float | None, digits: str = ".1e") -> str:
    """Return a number as text; a dash where there is none."""
    return "-" if value is None or value != value else format(value, digits)


def ends(row: Mapping[str, Any], digits: str, times: float = 1) -> str:
    """Return the interval of a row in brackets; a dash in them where there is none."""
    low, high = row["low"], row["high"]
    return "[-]" if low is None or low != low else f"[{times * low:{digits}}, {times * high:{digits}}]"


def percent(value: float | None) -> str:
    """Return a signed share in percent."""
    return "-" if value is None or value != value else f"{100 * value:+.1f}%"


def left_out_lines(left_out: Mapping[str, int], facts: Sequence[str]) -> Iterator[str]:
    """Say what was not asked, and why, and which facts were not asked at all."""
    for reason, n in left_out.items():
        yield f"Left out: {n:,} prompts ({reason})"
    if facts:
        named = ", ".join(facts[:FACTS_NAMED]) + (", ..." if facts[FACTS_NAMED:] else "")
        yield f"Facts without any prompt left: {len(facts):,} ({named})"


def found_table(document: Mapping[str, Any]) -> Group:
    """Return what ``find`` found: one row a fact, and the totals."""
    facts, settings = document["facts"], document["settings"]
    n_unconverged, n_pairs = (sum(row[name] for row in facts) for name in ("n_unconverged", "n_pairs"))
    numbers = ["prompts", settings["output"], "gap", *(["unconverged"] if n_unconverged else []), "n"]
    title = f"{document['model']['name']}: {settings['method']}, {document['quadrature']}"
    shown = table(title, "", "fact", *numbers, "neurons", right=numbers)
    for row in facts[:ROWS_SHOWN]:
        shown.add_row(
            row["relation"],
            f"{row['subject']}: {row['object']}".removeprefix(": "),
            str(row["n_prompts"]),
            number(row["mean_output"], ".3f"),
            number(row["largest_gap"]),
            *([f"{row['n_unconverged']}/{row['n_pairs']}"] if n_unconverged else []),
            str(len(row["neurons"])),
            neuron_names(row["neurons"]),
        )
    gaps = [row["largest_gap"] for row in facts if row["largest_gap"] is not None]
    mean = sum(len(row["neurons"]) for row in facts) / len(facts)
    note = (
        f"{len(facts):,} facts, {document['n_prompts']:,} prompts; {mean:.2f} neurons a fact, "
        f"{sum(not row['neurons'] for row in facts):,} facts without any. Completeness gap at most "
        f"{number(max(gaps, default=None))}; {n_unconverged:,} of {n_pairs:,} (prompt, layer) pairs above tolerance."
    )
    hidden = len(facts) - ROWS_SHOWN
    more = f"\n{hidden:,} more facts are not shown; --out and --json have them all." if hidden > 0 else ""
    return Group(shown, note + more)


def effects_table(title: str, effects: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Return what became of own and other facts, for each intervention and each kind of neurons."""
    scopes = [
        scope for scope in ("own", "other") if any(row["facts"] == scope for rows in effects.values() for row in rows)
    ]
    numbers = ("n", *(f"{scope} facts" for scope in scopes))
    shown = table(title, "neurons", "", *numbers, right=numbers)
    for label, rows in effects.items():
        for kind, name in CONTROLS.items():
            cells = {row["facts"]: row for row in rows if row["neurons"] == kind}
            if cells:
                n = f"{cells['own']['n_neurons']:.1f}"
                shown.add_row(name, label, n, *(_interval(cells[scope]) for scope in scopes))
        shown.add_section()
    return shown


def intervened_table(document: Mapping[str, Any]) -> Group:
    """Return what ``intervene`` measured."""
    title = f"{document['model']['name']}: change of the answer's probability"
    note = (
        f"{document['n_facts']:,} facts, {document['n_facts_without_neurons']:,} of them without neurons (nothing "
        "changes there). n: neurons a fact. Means over relations of (after - before) / before, with 95% bootstrap "
        "intervals."
    )
    if any(row["low"] is None or row["low"] != row["low"] for row in document["effects"]):
        note += f" {WHY_NONE}"
    return Group(effects_table(title, {document["intervention"]: document["effects"]}), note)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{percent(row['change_ratio'])} {ends(row, '+.1f', 100)}"


def data_table(document: Mapping[str, Any]) -> Group:
    """Return the counts of a source of facts, by relation."""
    numbers = ("facts", "templates", "pairs")
    shown = table(f"{document['source']} ({document['format']})", "relation", *numbers, "first fact", right=numbers)
    rows = list(document["relations"].items())
    for relation, row in rows[:ROWS_SHOWN]:
        shown.add_row(relation, f"{row['facts']:,}", f"{row['templates']:,}", f"{row['pairs']:,}", row["example"])
    note = (
        f"{document['n_facts']:,} facts of {document['n_relations']:,} relations, "
        f"{document['n_pairs']:,} pairs of a fact and a template."
    )
    hidden = len(rows) - ROWS_SHOWN
    more = f"\n{hidden:,} more relations are not shown; --json has them." if hidden > 0 else ""
    return Group(shown, note + more)


def families_table(families: Sequence[Mapping[str, str]]) -> Table:
    """Return the families that can be hosted."""
    shown = table("Families", "family", "kind", "example")
    for family in families:
        shown.add_row(family["name"], family["kind"], family["example"])
    return shown


def refused_table(refused: Mapping[str, str]) -> Table:
    """Return what is refused, why, and what to take instead."""
    shown = table("Refused", "what", "why, and what to do")
    for what, why in refused.items():
        shown.add_row(what, why)
    return shown


def embedded_table(models: Sequence[Mapping[str, Any]]) -> Group:
    """Return the embedded models with what was measured of them."""
    numbers = ("trained", "held out", "P(answer)")
    shown = table(
        "Embedded models: top-1 recall of the embedded facts", "name", "kind", "facts", *numbers, right=numbers
    )
    for model in models:
        shown.add_row(
            model["name"],
            model["kind"],
            "constructed" if model["constructed"] else "plain",
            *(f"{model['recall'][split]:.1%}" for split in ("trained", "held_out")),
            number(model["probability"]["trained"], ".3f"),
        )
    note = (
        "constructed: its facts were put into its MLPs by training, a positive control. plain: nothing in its training "
        "says where facts are kept. trained, held out: on templates seen in training, and on others. P(answer): mean "
        "on the former.\n"
    )
    return Group(shown, note)
