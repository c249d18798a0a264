"""``kn-lens compare``: models side by side on their common facts, from the records of their runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._core import defaults
from kn_lens._core.intervals import WHY_NONE
from kn_lens.cli import _options as options
from kn_lens.cli._options import RESULT, named_option, option
from kn_lens.cli._tables import interval, number, table
from kn_lens.cli._terminal import out, print_json, show_progress
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from kn_lens.reports.compare.comparison import Comparison

SAMPLING = "Random draws"
FACT_SETS = {
    "shared": "facts queried in all",
    "known_by_all": "facts known by all",
    "measured": "facts measured in all on request",
}
"""Sets of facts in the terminal. Those known by both models of a pair, or by one alone, are in the files."""
PAGE = "comparison.html"
"""Page of the runs side by side."""
PAIRS_SHOWN = 3
"""With more pairs of runs, the terminal shows contrasts; the differences of all pairs are in the files."""

Cells = Mapping[str, Callable[[Mapping[str, Any]], str]]
"""Columns by title, each with a function from a row to its text."""


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Two or more directories of kn-lens reproduce, each as DIRECTORY or NAME=DIRECTORY.",
        ),
    ],
    to: Annotated[
        Path | None,
        named_option(
            RESULT, "--out -o", "DIR", "Folder of comparison.html, the runs side by side, and all tables, as CSV."
        ),
    ] = None,
    json: options.Json = False,
    seed: Annotated[int, option(SAMPLING, "N", "Seed of all random draws.", min=0)] = 0,
    n_resamples: Annotated[
        int,
        option(SAMPLING, "N", "Number of bootstrap samples.", min=1),
    ] = defaults.N_RESAMPLES,
    n_permutations: Annotated[
        int,
        option(SAMPLING, "N", "Number of permutations of a test.", min=1),
    ] = defaults.N_PERMUTATIONS,
) -> None:
    """Compare models on the common facts of their runs: recall, neurons, depth, sharing, effects.

    No model is loaded. Neurons of different models are never matched.

    Example:
        kn-lens compare masked=runs/masked causal=runs/causal
    """
    named = _named_directories(runs)

    from kn_lens.reports.compare.comparison import check_folder, compare_runs
    from kn_lens.reports.report import write_comparison

    if to is not None:
        check_folder(to)
    with show_progress("Comparing"):
        comparison = compare_runs(
            named,
            n_resamples=n_resamples,
            n_permutations=n_permutations,
            seed=seed,
        )
    if to is not None:
        comparison.write_csv(to)
        write_comparison(comparison, to / PAGE)
    if json:
        tables = {name: rows.to_dict("records") for name, rows in comparison.tables.items()}
        print_json(
            {
                "command": "compare",
                "runs": list(named),
                "tables": tables,
                "notes": comparison.notes,
            }
        )
        return
    for result in _tables(comparison):
        out.print(result)
    for note in comparison.notes:
        out.print(note, soft_wrap=True)
    out.print(
        f"{WHY_NONE} No p of fewer than 6 relations, which could not be below 0.05.",
        soft_wrap=True,
    )
    sources = "--out DIR and --json contain all" if to is None else f"{to} contains all"
    out.print(
        f"{sources}: each model's own facts, controls, depth by layer, all pairs, p of facts.",
        soft_wrap=True,
    )


def _named_directories(runs: Sequence[str]) -> dict[str, str]:
    """Return the directories by their given names, or by the names of their folders."""
    named: dict[str, str] = {}
    for run in runs:
        name, equals, path = run.partition("=")
        # An address may contain "=". What follows it may be a secret and must not be shown alone.
        if not equals or "/" in name or Path(run).exists():
            name = Path(run).resolve().name
            path = run
        if not name or not path:
            raise ArgumentError(f"{run!r}; expected a run directory, or NAME=DIRECTORY.")
        if name in named:
            raise ArgumentError(f"{named[name]} and {path} have the same name, {name}. Name one, as in other={path}.")
        named[name] = path
    return named


def _tables(comparison: "Comparison") -> "Iterator[Table]":
    """Yield the tables of the terminal: facts queried in all models or known by all, and found neurons."""
    yield _runs_table(comparison.runs)
    n_runs = len(comparison.runs)
    n_pairs = n_runs * (n_runs - 1) // 2
    found = comparison.values.query("neuron_set in ['', 'found']")
    yield from _grouped_tables("Values, {fact_set}", found, {**STATISTIC, **RUN, **VALUE})
    if n_pairs <= PAIRS_SHOWN:
        title = "Difference: {run_b} - {run_a}, {fact_set}"
        yield from _grouped_tables(
            title,
            comparison.differences,
            {**STATISTIC, **VALUE, **P_RELATIONS},
        )
    else:
        title = "{of}: {to} - {from}, {fact_set}, pairs: {n_pairs}"
        yield from _grouped_tables(title, comparison.contrasts, {**STATISTIC, **VALUE, **SPREAD})
    title = "Distance between distributions of depth, {fact_set}"
    yield from _grouped_tables(
        title,
        comparison.distances,
        {**PAIR, **VALUE, **RESOLUTION, **P_RELATIONS},
    )
    title = "Rank correlation of {statistic}, {fact_set}"
    yield from _grouped_tables(title, comparison.correlations, {**PAIR, **VALUE, **P_FACTS})


def _runs_table(runs: "pd.DataFrame") -> "Table":
    numbers = ("parameters", "facts", "shared", "known", "by all")
    result = table("Runs", "run", "tags", *numbers, right=numbers)
    for row in runs.to_dict("records"):
        counts = [row[name] for name in ("n_params", "facts", "shared", "own", "known_by_all")]
        result.add_row(row["run"], row["tags"], *(f"{count:,}" for count in counts))
    return _with_folded_names(result)


def _grouped_tables(title: str, rows: "pd.DataFrame", cells: Cells) -> "Iterator[Table]":
    """Yield one table for all rows with the same title."""
    groups: dict[str, list[Mapping[Any, Any]]] = {}
    for row in rows.to_dict("records"):
        if row["fact_set"] in FACT_SETS:
            names = {**row, "fact_set": FACT_SETS[row["fact_set"]]}
            groups.setdefault(title.format(**names), []).append(row)
    numbers = [name for name in cells if name not in ("statistic", "run", "runs")]
    for group_title, group in groups.items():
        result = table(group_title, *cells, right=numbers)
        for row in group:
            result.add_row(*(text(row) for text in cells.values()))
        yield _with_folded_names(result)


def _with_folded_names(result: "Table") -> "Table":
    """Return a table that folds long names instead of truncating them."""
    for column in result.columns:
        column.overflow = "fold"
    return result


def _three_digits(value: float) -> str:
    return number(value, ".3f")


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else _three_digits(value)


STATISTIC: Cells = {"statistic": lambda row: row["statistic"]}
RUN: Cells = {"run": lambda row: row["run"]}
PAIR: Cells = {"runs": lambda row: f"{row['run_b']} - {row['run_a']}"}
VALUE: Cells = {
    "value, 95% interval": lambda row: f"{_three_digits(row['value'])} {interval(row, '.3f')}",
    "n": lambda row: f"{row['n']:,}",
    "control": lambda row: _three_digits(row["control"]),
}
P_RELATIONS: Cells = {"p of relations": lambda row: _p_value(row["p_relations_holm"])}
P_FACTS: Cells = {"p": lambda row: _p_value(row["p_holm"])}
RESOLUTION: Cells = {"resolution": lambda row: _three_digits(row["resolution"])}
SPREAD: Cells = {
    "pairs": lambda row: f"{_three_digits(row['smallest'])}..{_three_digits(row['largest'])}",
    "seeds": lambda row: _three_digits(row["between_seeds"]),
}
