"""The application: all commands under one name."""

from typing import Annotated

import typer

import kn_lens
from kn_lens.cli import compare, data, demo, edit, find, intervene, models, report, reproduce, study
from kn_lens.cli._help import Command, CommandGroup, help_without_subcommand

app = typer.Typer(
    name="kn-lens",
    cls=CommandGroup,
    help="""Find, measure and change the neurons of a language model that carry a fact.

Example:
    kn-lens demo
    kn-lens find --relation P36 --out neurons.json
    kn-lens intervene --neurons neurons.json""",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(cls=Command)(demo.demo)
app.command(cls=Command)(find.find)
app.command(cls=Command)(intervene.intervene)
app.command(cls=Command)(reproduce.reproduce)
app.command(cls=Command)(study.study)
app.command(cls=Command)(compare.compare)
app.command(cls=Command)(report.report)
app.command(cls=Command)(models.models)
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
