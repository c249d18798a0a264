"""Help of commands: paragraphs as wide as the terminal, examples as they are typed, options by panel, nothing cut.

The help that typer draws with rich cuts the names of options and choices on a narrow terminal, keeps the line breaks of
docstrings and shows a type for flags. Plain help does none of this; panels, which it lacks, are added here.
"""

import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

EXAMPLE = "\n\nExample:\n"
KEEP_BREAKS = "\b\n"
"""Mark of a paragraph that is printed as it is."""
ARGUMENTS = "Arguments"
OPTIONS = "Options"
"""Panels of parameters without a panel."""
MIN_WIDTH = 20
"""Least width of descriptions."""


def help_without_subcommand(context: typer.Context) -> None:
    """Print the help of a group of commands that was called without a command, and exit."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


class Command(TyperCommand):
    """A command; its docstring ends with an example."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        super().__init__(*args, **{**options, **_plain_help(help)})

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, with the arguments as they are named in the help."""
        arguments = [parameter for parameter in self.params if _is_argument(parameter)]
        return [self.options_metavar or "", *(str(argument.metavar) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options, panel by panel."""
        _write_panels(self.get_params(ctx), ctx, formatter)


class CommandGroup(TyperGroup):
    """A group of commands; its help ends with an example."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        super().__init__(*args, **{**options, **_plain_help(help)})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the commands with their whole first sentences."""
        _write_panels(self.get_params(ctx), ctx, formatter)
        rows = []
        for name in self.list_commands(ctx):
            rows.append((name, self.commands[name].short_help or ""))
        with formatter.section("Commands"):
            _write_rows(formatter, rows)


def _plain_help(text: str | None) -> dict[str, Any]:
    """Return the options of a command for its help, given its docstring."""
    text = inspect.cleandoc(text or "")
    return {
        "help": text.replace(EXAMPLE, f"\n\n{KEEP_BREAKS}{EXAMPLE.lstrip()}"),
        "short_help": " ".join(text.partition("\n\n")[0].split()),
        "rich_markup_mode": None,
    }


def _is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def _write_panels(parameters: Sequence[Any], ctx: Any, formatter: Any) -> None:
    """Write parameters with their descriptions, panel by panel."""
    rows_by_panel: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        name, description = parameter.get_help_record(ctx)
        panel = getattr(parameter, "rich_help_panel", None) or OPTIONS
        if _is_argument(parameter):
            name = parameter.metavar  # without the type that newer releases of typer append
            panel = ARGUMENTS
        rows_by_panel.setdefault(panel, []).append((name, description))
    for panel, rows in rows_by_panel.items():
        with formatter.section(panel):
            _write_rows(formatter, rows)


def _write_rows(formatter: Any, rows: list[tuple[str, str]]) -> None:
    """Write names with their descriptions beside them, wrapped between words: never within the name of an option."""
    indent = " " * formatter.current_indent
    column = len(indent) + max(len(name) for name, _ in rows) + 2
    for name, description in rows:
        head = f"{indent}{name}".ljust(column)
        lines = textwrap.wrap(
            description,
            max(MIN_WIDTH, formatter.width - column),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines:
            formatter.write(f"{head}{line}\n")
            head = " " * column
