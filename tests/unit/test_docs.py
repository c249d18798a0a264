"""What the pages of the documentation show is what happens."""

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "kn_lens").rglob("*.py")
    if path != ROOT / "kn_lens" / "__init__.py"
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced code of a page in one language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [path.name for path in sorted(DOCS.glob("*.md")) if blocks(path.name, "pycon")])
def test_examples_print_what_the_page_says(page):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    example = doctest.DocTestParser().get_doctest("\n".join(blocks(page, "pycon")), {}, page, page, 0)
    report: list[str] = []
    failed, attempted = doctest.DocTestRunner(optionflags=flags, verbose=False).run(example, out=report.append)
    assert attempted and not failed, "".join(report)


def test_every_public_name_is_in_the_reference():
    import kn_lens

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\.\. auto\w+:: kn_lens\.(\w+)$", text, flags=re.MULTILINE)) == set(kn_lens.__all__)


def test_every_page_is_in_the_table_of_contents():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = [name for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
              for name in block.split("\n") if name and not name.startswith(":")]  # fmt: skip
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("*.md")}
    assert set(listed) >= pages - {"index"}


@pytest.mark.parametrize("number", range(3))
def test_examples_of_extending_run_and_are_short(number, tmp_path, monkeypatch):
    examples = blocks("extending.md", "python")
    assert len(examples) == 3 and examples[number].count("\n") < 50
    monkeypatch.chdir(tmp_path)
    exec(compile(examples[number], f"extending.md, example {number}", "exec"), {"__name__": "example"})


def imported(path: Path) -> set[str]:
    """The modules of the package that a module imports when it is itself imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kn_lens":
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                found.add(inner if inner in MODULES else node.module or "")
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names if one.name.split(".")[0] == "kn_lens"}
    return found - {"kn_lens"}


def test_the_map_names_every_module_after_those_it_imports():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    order = [f"kn_lens.{name}" for name in re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE)]
    assert sorted(order) == sorted(MODULES)
    place = {name: number for number, name in enumerate(order)}
    upside_down = [(name, other) for name in order for other in imported(MODULES[name]) if place[other] >= place[name]]
    assert not upside_down
