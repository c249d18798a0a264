"""The pages of the documentation leave nothing out: public names, errors, modules. What they show, test_pages.py runs."""

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
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            names = [name for name in block.split("\n") if name and not name.startswith(":")]
            listed |= {(path.parent / name).relative_to(DOCS).as_posix() for name in names}
    assert listed == {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES} - {"index"}


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
