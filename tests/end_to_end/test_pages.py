"""The code of the documentation runs and prints what the pages show.

The README has a test of its own, since it cannot contain the comments that this one reads.
"""

import pytest

from tests.pages import LANGUAGES, PAGES, ROOT, blocks, commands, inline_commands, parse, read_toml, run_page

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in [*PAGES, ROOT / "README.md"]}
BLOCKS = {name: blocks(text) for name, text in TEXTS.items()}
CODE = {"python", "pycon", "console"}
RUN = [name for name, found in BLOCKS.items() if name != "README.md" and {block.language for block in found} & CODE]


@pytest.mark.parametrize("name", RUN)
def test_code_of_a_page_prints_what_the_page_shows(name, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / name, cli)


@pytest.mark.parametrize("name", TEXTS)
def test_every_block_has_a_language_and_every_exception_a_reason(name):
    for block in BLOCKS[name]:
        assert block.language in LANGUAGES, f"{name}:{block.line}"
        assert block.language != "toml" or read_toml(block)
        assert not block.not_run or len(block.not_run.split()) > 2, f"{name}:{block.line}"


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "kn-lens" in text])
def test_commands_of_pages_are_valid(name):
    for block in BLOCKS[name]:
        for command in commands(block):
            parse(command)
    for command in inline_commands(TEXTS[name]):
        parse(command, whole=False)


def test_invalid_commands_are_detected():
    for wrong in ("kn-lens find --modle world-bert", "kn-lens find --method guess", "kn-lens fnd", "kn-lens report"):
        with pytest.raises(Exception, match=r"(?i)no such|not one of|missing"):
            parse(wrong)
    (wrong,) = inline_commands("then `kn-lens edit\ntry`, and `kn-lens COMMAND --help`")
    with pytest.raises(Exception, match=r"(?i)no such"):
        parse(wrong, whole=False)


def test_output_of_a_page_is_compared(cli, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```pycon\n>>> x\n1\n```\n", encoding="utf-8")
    assert run_page(page, cli)["x"] == 1
    for wrong in ("```pycon\n>>> 1 + 1\n3\n```\n", "```console\n$ kn-lens --version\nkn-lens 7\n```\n"):
        page.write_text(wrong, encoding="utf-8")
        with pytest.raises(AssertionError, match=r"(?i)expected"):
            run_page(page, cli)


def test_each_of_the_most_common_jobs_takes_three_lines():
    sections = TEXTS["docs/howto/short.md"].split("\n## ")[1:]
    jobs = {section.partition("\n")[0]: blocks(section) for section in sections}
    assert list(jobs) == ["Find", "Compare with random neurons", "Suppress", "Edit", "Compare two models"]
    for name, found in jobs.items():
        for block in found:
            lines = [line for line in block.code.splitlines() if line.startswith((">>> ", "... "))]
            assert block.language == "pycon" and not block.given and 1 <= len(lines) <= 3, name


def test_examples_of_extending_are_short():
    examples = [block.code for block in BLOCKS["docs/extending.md"] if block.language == "python"]
    assert len(examples) == 5 and all(example.count("\n") < 50 for example in examples)
