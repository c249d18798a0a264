"""The commands of the command line."""

from collections.abc import Iterator

import typer

from kn_lens.cli._app import app


def leaves(command, words=()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every command with its name."""
    inner = getattr(command, "commands", None)
    if inner:
        for name, one in inner.items():
            yield from leaves(one, (*words, name))
    else:
        yield words, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
