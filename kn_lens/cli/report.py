"""``kn-lens report``: a run as one HTML file, its figures as images, its tables as CSV."""

from pathlib import Path
from typing import Annotated

import typer

from kn_lens.cli import _options as options
from kn_lens.cli._options import RESULT, check_output_path, named_option, option, split_names
from kn_lens.cli._terminal import out, print_json, show_progress
from kn_lens.errors import ArgumentError, did_you_mean


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory of 'kn-lens reproduce', complete or not."),
    ],
    to: Annotated[
        Path | None,
        named_option(RESULT, "--out -o", "FILE", "Output file; report.html in the run directory by default."),
    ] = None,
    figures: Annotated[
        str | None,
        option(RESULT, "png,svg,...", "Formats of figure files in figures/ beside it: html, png, svg."),
    ] = None,
    tables: Annotated[
        str | None,
        option(RESULT, "csv", "Format of tables of facts and neurons in tables/ beside it: csv."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write one HTML file about a run that opens in any browser, offline.

    No model is loaded. For an incomplete run, the report lists what is missing and the command that computes it.
    """
    check_output_path(to)
    formats = split_names(figures)
    if tables not in (None, "csv"):
        raise ArgumentError(f"--tables {tables!r}; expected csv.{did_you_mean(tables, ['csv'])}")

    from kn_lens.reports.report import write_figures, write_report, write_tables

    folder = run if to is None else to.parent
    paths: list[Path] = []
    with show_progress("Writing the report"):
        if formats:
            paths += write_figures(run, folder / "figures", formats)
        if tables:
            paths += write_tables(run, folder / "tables")
        paths.append(write_report(run, to))
    if json:
        print_json({"command": "report", "run": str(run), "files": [str(path) for path in paths]})
        return
    for path in paths:
        out.print(f"{path} ({_file_size(path)})", soft_wrap=True)


def _file_size(path: Path) -> str:
    size = path.stat().st_size
    if size >= 1e6:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.0f} kB"
