"""``kn-lens report``: a run as one HTML file, its figures as images, its tables as CSV."""

from pathlib import Path
from typing import Annotated

import typer

from kn_lens.cli import _options as options
from kn_lens.cli._options import RESULT, check_out, option
from kn_lens.cli._terminal import out, print_json, working
from kn_lens.errors import ArgumentError, did_you_mean


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of 'kn-lens reproduce', finished or not.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="File to write; report.html in the run directory unless given.",
            rich_help_panel=RESULT,
        ),
    ] = None,
    figures: Annotated[
        str | None, option(RESULT, "png,svg,...", "Figures as files too, in figures/ beside it: html, png, svg.")
    ] = None,
    tables: Annotated[
        str | None, option(RESULT, "csv", "Facts and neurons as CSV too, in tables/ beside it.")
    ] = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Write one HTML file about a run, to be opened in any browser, offline, and passed on.

    No model is loaded. Of a run that was stopped, the report says what is missing and the command that makes it.
    """
    check_out(to)
    formats = [one.strip() for one in (figures or "").split(",") if one.strip()]
    if tables not in (None, "csv"):
        raise ArgumentError(f"--tables {tables!r}; expected csv.{did_you_mean(tables, ['csv'])}")

    from kn_lens.report import write_figures, write_report, write_tables

    with working("Writing the report"):
        beside = run if to is None else to.parent
        written = write_figures(run, beside / "figures", formats) if formats else []
        written += write_tables(run, beside / "tables") if tables else []
        written.append(write_report(run, to))
    if json:
        print_json({"command": "report", "run": str(run), "files": [str(path) for path in written]})
        return
    for path in written:
        size = path.stat().st_size
        out.print(f"{path} ({size / 1e6:.1f} MB)" if size >= 1e6 else f"{path} ({size / 1e3:.0f} kB)", soft_wrap=True)
