"""The code in the pages of the documentation, and what runs it.

What a page does with a block is said by its language:

    python, pycon    run, all blocks of a page one after another with the same names; what pycon prints is compared
    console          the commands behind ``$`` are run, and what they print is compared
    sh               each ``kn-lens`` command is parsed, as it would be before it runs
    toml             read
    text             nothing

Comments of MyST, which no reader sees, stand in front of a block: ``% given: STATEMENT`` is run before it,
``% not run: REASON`` leaves it out, and ``% needs: MODULE`` skips the page where the module is missing.
"""

import doctest
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from kn_lens.cli._app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

LANGUAGES = ("python", "pycon", "console", "sh", "toml", "text")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

_BLOCK = re.compile(
    r"(?P<comments>(?:^%[^\n]*\n)*)^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block, the number of the line before its first, and what the comments in front of it say."""

    language: str
    code: str
    line: int
    given: str = ""
    not_run: str = ""
    needs: str = ""


def blocks(text: str) -> list[Block]:
    """Return the code of a page; what Sphinx is told with ``{...}`` is none."""
    found = []
    for match in _BLOCK.finditer(text):
        said = {name: [] for name in ("given", "not run", "needs")}
        for comment in match["comments"].splitlines():
            name, _, what = comment.removeprefix("%").strip().partition(":")
            said[name].append(what.strip())
        if not match["language"].startswith("{"):
            line = text.count("\n", 0, match.start("code"))
            given, reason, needs = "\n".join(said["given"]), " ".join(said["not run"]), " ".join(said["needs"])
            found.append(Block(match["language"], match["code"], line, given, reason, needs))
    return found


def run_page(path: Path, cli: Callable[..., tuple[int, str, str]]) -> dict[str, Any]:
    """Run the code of a page in the current directory; returns the names that it leaves.

    Raises:
        AssertionError: something prints what the page does not say.
    """
    names: dict[str, Any] = {"__name__": path.stem}
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.needs:
            pytest.importorskip(block.needs, reason=f"{path.name} needs {block.needs}")
        if block.given:
            exec(block.given, names)
        if block.not_run:
            continue
        where = f"{path}:{block.line + 1}"
        if block.language == "python":
            # Empty lines in front make the lines of a traceback those of the page.
            exec(compile("\n" * block.line + block.code, str(path), "exec"), names)
        elif block.language == "pycon":
            _compare(block, names, where)
        elif block.language == "console":
            for command, expected in sessions(block.code):
                code, out, err = cli(*arguments(command))
                printed = (out if code == 0 else err).strip() + "\n"
                told = expected.strip() + "\n"
                if not doctest.OutputChecker().check_output(told, printed, FLAGS):
                    raise AssertionError(f"{where}: {command}\nexpected:\n{told}\nprinted:\n{printed}")
    return names


def _compare(block: Block, names: dict[str, Any], where: str) -> None:
    example = doctest.DocTestParser().get_doctest(block.code, names, where, where.partition(":")[0], block.line)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    failed, attempted = runner.run(example, out=report.append, clear_globs=False)
    names.update(example.globs)
    assert attempted and not failed, "".join(report)


def sessions(code: str) -> list[tuple[str, str]]:
    """Return the commands of a console, each with what it prints."""
    parts = re.split(r"^\$ ", code, flags=re.MULTILINE)
    assert not parts[0].strip(), f"a console begins with a command behind '$ ', not with {parts[0]!r}"
    return [part.partition("\n")[::2] for part in (part.replace("\\\n", " ") for part in parts[1:])]


def commands(block: Block) -> list[str]:
    """Return the ``kn-lens`` commands of a block for a shell."""
    if block.language == "console":
        return [command for command, _ in sessions(block.code)]
    lines = block.code.replace("\\\n", " ").splitlines() if block.language == "sh" else []
    return [line for line in lines if line.startswith("kn-lens ")]


def inline_commands(text: str) -> list[str]:
    """Return the ``kn-lens`` commands that stand in the running text."""
    code = [" ".join(one.split()) for one in re.findall(r"(?<!`)`(kn-lens [^`]+)`(?!`)", text)]
    return [one for one in code if not one.split()[1].isupper()]  # COMMAND stands for any


def arguments(command: str) -> list[str]:
    """Return what a command gives to ``kn-lens``."""
    program, *rest = shlex.split(command, comments=True)
    assert program == "kn-lens", f"{command!r} is not a command of kn-lens"
    return rest


def parse(command: str, whole: bool = True) -> None:
    """Parse a command, with all checks of its options, and do nothing.

    Args:
        command: as a user writes it.
        whole: it can be given as it stands; else required options may be missing.

    Raises:
        Exception: of typer, telling what is wrong.
    """
    idle = _without_actions(typer.main.get_command(app))
    try:
        idle.main(arguments(command), prog_name="kn-lens", standalone_mode=False)
    except typer.BadParameter.__mro__[1] as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise


def _without_actions(command: Any) -> Any:
    command.callback = lambda **options: None
    for inner in getattr(command, "commands", {}).values():
        _without_actions(inner)
    return command


def read_toml(block: Block) -> dict[str, Any]:
    """Return what a block of TOML says."""
    return tomllib.loads(block.code)
