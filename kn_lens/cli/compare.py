"""``kn-lens compare``: models side by side on the facts that they have in common, from the records of their runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._draws import WHY_NONE
from kn_lens.cli import _options as options
from kn_lens.cli._options import RESULT, option
from kn_lens.cli._tables import ends, number, table
from kn_lens.cli._terminal import out, print_json, working
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from kn_lens.compare import Comparison

DRAWING = "What is drawn"
FACTS = {"shared": "facts asked of all", "known_by_all": "facts that all know"}
"""The facts of the tables that a terminal shows; what both of a pair or one alone knows is in the files."""
PAIRS_SHOWN = 3
"""Of more pairs, differences are in the files, and their contrasts are shown."""

Shows = Mapping[str, Callable[[Mapping[str, Any]], str]]
"""Columns by title, and how a row is shown in each."""


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Directories of kn-lens reproduce, two or more; NAME=DIRECTORY gives one a name."
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for all tables, as CSV.", rich_help_panel=RESULT),
    ] = None,
    json: options.Json = False,
    seed: Annotated[int, option(DRAWING, "N", "Of everything drawn at random.", min=0)] = 0,
    n_resamples: Annotated[int, option(DRAWING, "N", "Bootstrap samples.", min=1)] = 1000,
    n_permutations: Annotated[int, option(DRAWING, "N", "Permutations of a test.", min=1)] = 10_000,
) -> None:
    """Compare models on the facts that their runs have in common: recall, neurons, depth, sharing, effects.

    No model is loaded. Neurons of different models are never matched.
    """
    named = _named(runs)

    from kn_lens.compare import check_folder, compare_runs

    if to is not None:
        check_folder(to)
    with working("Comparing"):
        comparison = compare_runs(named, n_resamples=n_resamples, n_permutations=n_permutations, seed=seed)
    if to is not None:
        comparison.write_csv(to)
    if json:
        tables = {name: one.to_dict("records") for name, one in comparison.tables.items()}
        print_json({"command": "compare", "runs": list(named), "tables": tables, "notes": comparison.notes})
        return
    for one in _tables(comparison):
        out.print(one)
    for note in comparison.notes:
        out.print(note, soft_wrap=True)
    out.print(f"{WHY_NONE} No p of fewer than 6 relations, which could not be below 0.05.", soft_wrap=True)
    where = "--out DIR and --json give all" if to is None else f"{to} has all"
    out.print(f"{where}: each model's own facts, controls, depth by layer, all pairs, p of facts.", soft_wrap=True)


def _named(runs: Sequence[str]) -> dict[str, str]:
    """Return the directories by the names given, or by those of their folders."""
    named: dict[str, str] = {}
    for run in runs:
        name, equals, path = run.partition("=")
        if (
            not equals or "/" in name or Path(run).exists()
        ):  # of an address, what is behind "=" is not to be shown alone
            name, path = Path(run).resolve().name, run
        if not name or not path:
            raise ArgumentError(f"{run!r}; expected a run directory, or NAME=DIRECTORY.")
        if name in named:
            raise ArgumentError(f"{named[name]} and {path} are both called {name}; name one, as in other={path}.")
        named[name] = path
    return named


def _tables(comparison: "Comparison") -> "Iterator[Table]":
    """Yield what a terminal shows: of what all models know and are asked, and of found neurons."""
    yield _runs(comparison.runs)
    n_pairs = len(comparison.runs) * (len(comparison.runs) - 1) // 2
    run: Shows = {"run": lambda row: row["run"]}
    pair: Shows = {"runs": lambda row: f"{row['run_b']} - {row['run_a']}"}
    of_relations: Shows = {"p of relations": lambda row: _p(row["p_relations_holm"])}
    of_facts: Shows = {"p": lambda row: _p(row["p_holm"])}
    resolution: Shows = {"resolution": lambda row: _three(row["resolution"])}
    found = comparison.values.query("neurons in ['', 'found']")
    yield from _blocks("Values, {facts}", found, {**STATISTIC, **run, **VALUE})
    if n_pairs <= PAIRS_SHOWN:
        columns = {**STATISTIC, **VALUE, **of_relations}
        yield from _blocks("Difference: {run_b} - {run_a}, {facts}", comparison.differences, columns)
    else:
        columns = {**STATISTIC, **APART}
        yield from _blocks("{of}: {to} - {from}, {facts}, pairs: {n_pairs}", comparison.contrasts, columns)
    columns = {**pair, **VALUE, **resolution, **of_relations}
    yield from _blocks("Distance between distributions of depth, {facts}", comparison.distances, columns)
    columns = {**pair, **VALUE, **of_facts}
    yield from _blocks("Rank correlation of {statistic}, {facts}", comparison.correlations, columns)


def _runs(rows: "pd.DataFrame") -> "Table":
    numbers = ("parameters", "facts", "shared", "known", "by all")
    shown = table("Runs", "run", "tags", *numbers, right=numbers)
    for row in rows.to_dict("records"):
        counts = [row[name] for name in ("n_params", "facts", "shared", "own", "known_by_all")]
        shown.add_row(row["run"], row["tags"], *(f"{count:,}" for count in counts))
    return _folded(shown)


def _blocks(title: str, rows: "pd.DataFrame", columns: Shows) -> "Iterator[Table]":
    """Yield a table for all rows that have a title in common."""
    blocks: dict[str, list[Mapping[Any, Any]]] = {}
    for row in rows.to_dict("records"):
        if row["facts"] in FACTS:
            blocks.setdefault(title.format(**{**row, "facts": FACTS[row["facts"]]}), []).append(row)
    for said, of_block in blocks.items():
        shown = table(said, *columns, right=[name for name in columns if name not in ("statistic", "run", "runs")])
        for row in of_block:
            shown.add_row(*(show(row) for show in columns.values()))
        yield _folded(shown)


def _folded(shown: "Table") -> "Table":
    """Return a table whose names are folded where they are too long, rather than cut."""
    for column in shown.columns:
        column.overflow = "fold"
    return shown


def _three(value: float) -> str:
    return number(value, ".3f")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else _three(value)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_three(row['value'])} {ends(row, '.3f')}"


STATISTIC: Shows = {"statistic": lambda row: row["statistic"]}
VALUE: Shows = {
    "value, 95% interval": _interval,
    "n": lambda row: f"{row['n']:,}",
    "control": lambda row: _three(row["control"]),
}
APART: Shows = {
    **VALUE,
    "pairs": lambda row: f"{_three(row['smallest'])}..{_three(row['largest'])}",
    "seeds": lambda row: _three(row["between_seeds"]),
}
