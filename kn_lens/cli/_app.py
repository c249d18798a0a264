"""The application: all commands under one name."""

from typing import Annotated

import typer

import kn_lens
from kn_lens.cli import compare, data, demo, edit, find, intervene, models, report, reproduce, study
from kn_lens.cli._options import help_without_subcommand

app = typer.Typer(
    name="kn-lens",
    help="Find, measure and change the neurons of a language model that carry a fact.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(find.find)
app.command()(intervene.intervene)
app.command()(reproduce.reproduce)
app.command()(study.study)
app.command()(compare.compare)
app.command()(report.report)
app.command()(models.models)
app.add_typer(edit.app, name="edit")
app.add_typer(data.app, name="data")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"kn-lens {kn_lens.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar="",
            help="Version number.",
        ),
    ] = False,
) -> None:
    help_without_subcommand(context)
