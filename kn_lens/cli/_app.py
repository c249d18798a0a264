"""The commands, put together."""

from typing import Annotated

import typer

import kn_lens
from kn_lens.cli import compare, data, demo, edit, find, intervene, models, report, reproduce, study
from kn_lens.cli._options import help_if_bare

app = typer.Typer(
    name="kn-lens",
    help="Find, measure and change the neurons of a language model that carry a fact.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    find.find,
    intervene.intervene,
    reproduce.reproduce,
    study.study,
    compare.compare,
    report.report,
    models.models,
):
    app.command()(command)
app.add_typer(edit.app, name="edit")
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kn-lens {kn_lens.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    help_if_bare(context)
