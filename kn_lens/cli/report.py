"""``kn-lens report``: a run as one HTML file, its figures as images, its tables as CSV."""

from pathlib import Path
from typing import Annotated

import typer

from kn_lens._core.names import FIGURE_FORMATS
from kn_lens.cli import _options as options
from kn_lens.cli._options import RESULT, check_output_path, choice, named_option
from kn_lens.cli._terminal import out, print_json, show_progress


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
        list[str] | None,
        choice(FIGURE_FORMATS, "Format of figure files in figures/ beside it, repeatable", RESULT),
    ] = None,
    tables: Annotated[
        str | None,
        choice(("csv",), "Format of tables of facts and neurons in tables/ beside it", RESULT),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write one HTML file about a run that opens in any browser, offline.

    No model is loaded. For an incomplete run, the report lists what is missing and the command that computes it.

    Example:
        kn-lens report run/ --figures png --figures svg
    """
    check_output_path(to)

    from kn_lens.reports.report import write_figures, write_report, write_tables

    folder = run if to is None else to.parent
    paths: list[Path] = []
    with show_progress("Writing the report"):
        if figures:
            paths += write_figures(run, folder / "figures", figures)
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
