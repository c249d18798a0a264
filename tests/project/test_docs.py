"""The pages are complete: public names, errors, packages. ``test_pages.py`` runs their code."""

import re
import tomllib

from tests.pages import DOCS, PAGES, ROOT


def test_every_public_name_is_in_the_reference():
    import kn_lens

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto\w+:: kn_lens\.(\w+)$", text, flags=re.MULTILINE)
    listed += re.findall(r"^\.\. automodule:: kn_lens\.reports\.(\w+)$", text, flags=re.MULTILINE)
    assert set(listed) == set(kn_lens.__all__)


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


def test_every_exception_has_a_page_with_a_message():
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


def test_the_map_has_every_package_in_the_order_of_its_imports():
    """import-linter, which `make test` runs, checks that packages import in this order only."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"\*\*`(\w+)`\*\*", text)
    packages = {path.parent.name for path in (ROOT / "kn_lens").glob("*/__init__.py")} - {"experiments"}  # an old path
    assert set(rooms) == packages
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = " ".join(reversed(contracts[0]["layers"]))
    order = re.findall(r"kn_lens\.(\w+)", layers.replace("kn_lens.errors", ""))
    assert [room for room in rooms if room in order] == order
