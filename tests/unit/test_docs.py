"""What the pages of the documentation show is what happens."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


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
