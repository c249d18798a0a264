"""The pages leave nothing out: public names, errors, modules. What they show is run by ``test_pages.py``."""

import ast
import re
from pathlib import Path

from tests.pages import DOCS, PAGES, ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "kn_lens").rglob("*.py")
    if path != ROOT / "kn_lens" / "__init__.py"
}


def test_every_public_name_is_in_the_reference():
    import kn_lens

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\.\. auto\w+:: kn_lens\.(\w+)$", text, flags=re.MULTILINE)) == set(kn_lens.__all__)


def test_every_page_is_in_the_table_of_contents():
    listed: set[str] = set()
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            names = [name for name in block.split("\n") if name and not name.startswith(":")]
            listed |= {(path.parent / name).relative_to(DOCS).as_posix() for name in names}
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES} - {"index"}
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "examples").glob("*.ipynb")}  # copied there by conf.py
    assert pages <= listed <= pages | notebooks


def test_every_exception_has_a_page_that_shows_it():
    import kn_lens

    exceptions = {name for name in kn_lens.__all__ if isinstance(getattr(kn_lens, name), type)
                  and issubclass(getattr(kn_lens, name), BaseException)}  # fmt: skip
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "errors").glob("*.md")}
    index = pages.pop("index")
    assert set(pages) == exceptions
    assert exceptions == set(re.findall(r"\]\((\w+)\.md\)", index))
    for name, text in pages.items():
        # Not the base class, which is never raised. That the messages are those of the code is tested with all pages.
        assert name == "KNLensError" or f"kn_lens.errors.{name}: " in text
        assert "**Cure:**" in text or name == "KNLensError"


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
