"""The README's code runs and prints what it shows, and its numbers are those of the pages and of the demo."""

import re

from tests.pages import DOCS, ROOT, run_page

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_code_prints_what_the_readme_shows(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page(README, cli)
    assert names["fact"].object == "Dublin" and len(names["found"].neurons) == 4
    assert names["logits"].shape[0] == names["found"].prompts.n_rows


def test_the_table_is_that_of_the_page_on_the_pretrained_model():
    page = (DOCS / "real_models.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"<!-- begin figures 4 and 5 -->(.*?)<!-- end", page, re.DOTALL)
    on_page = [cells(line) for line in section.strip().splitlines()[2:]]
    rows = [cells(line) for line in TEXT.splitlines() if re.match(r"\| [^|]*\| (off|x2) ", line)]
    facts = ""
    for row, (name, factor, *values, n) in zip(rows, on_page, strict=True):
        facts = row[0] or facts
        assert facts.split()[0] == n and facts.endswith(name)
        assert row[1] == {"x0": "off", "x2": "x2"}[factor] and row[2:] == values


def test_where_to_read_on_has_ten_lines_and_every_page():
    table = TEXT.partition("## Where to read on")[2].partition("`make docs`")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == 10
    linked = set(re.findall(r"\(docs/([\w/]+)\.md\)", table))
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index", "changes", "notebooks"}
    assert linked - {"howto/index", "errors/index"} == pages
