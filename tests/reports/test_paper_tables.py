"""Tables as Markdown and LaTeX: parsers of these forms find the cells that the table has."""

import re

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

import kn_lens as kn

TABLE = pd.DataFrame(
    {
        "neuron_set": ["found", r"a|b & 50% of_$x$ \n {~^}"],
        "change_ratio": [-0.40377, np.nan],
        "low": [-0.4876, np.nan],
        "high": [-0.321, np.nan],
        "n_facts": [24, 3],
        "note": [None, "x"],
        "value": [1.0, 2.5],
        "low2": [0, 0],
    }
)
CELLS = [
    ["neuron set", "change ratio", "n facts", "note", "value", "low2"],
    ["found", "-0.40 [-0.49, -0.32]", "24", "-", "1.00", "0"],
    [r"a|b & 50% of_$x$ \n {~^}", "- [-]", "3", "x", "2.50", "0"],
]


def test_markdown_is_read_by_a_parser_as_the_cells_of_the_table():
    text = kn.format_table(TABLE, digits=2, caption="Suppression")
    assert text.startswith("Suppression\n\n|")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells = [token.children for token in tokens if token.type == "inline"][1:]
    texts = ["".join(child.content for child in children) for children in cells]
    assert [texts[start : start + 6] for start in range(0, 18, 6)] == CELLS
    aligned = [token.attrGet("style") for token in tokens if token.type == "td_open"]
    assert [style.removeprefix("text-align:") for style in aligned[:6]] == [
        "left", "right", "right", "left", "right", "right",
    ]  # fmt: skip


def test_latex_has_the_same_cells_behind_its_escapes():
    text = kn.format_table(TABLE, "latex", digits=2, caption="50\\%", label="tab:effects")
    assert r"\caption{50\%}" in text and r"\label{tab:effects}" in text and r"\begin{tabular}{lrrlrr}" in text
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    found = []
    for line in lines:
        cells = re.split(r"(?<!\\) & ", line)
        found.append([unescaped(cell) for cell in cells])
    assert found == CELLS
    assert "$-0.49$, $-0.32$" in text  # a hyphen is no minus


def unescaped(cell):
    """Return what LaTeX sets for a cell of text and of numbers in math mode."""
    cell = re.sub(r"(?<!\\)\$(-[\d.]+)\$", r"\1", cell)
    for name, sign in (("textasciitilde", "~"), ("textasciicircum", "^"), ("textbackslash", "\0")):
        cell = cell.replace(f"\\{name}{{}}", sign)
    return re.sub(r"\\([&%$#_{}])", r"\1", cell).replace("\0", "\\")


def test_every_summary_table_merges_its_intervals():
    """``low`` and ``high`` follow the column that they belong to, in each table that the package returns."""
    row = {"relation": "P36", "neuron_set": "found", "question": "same relation", "n_prompts": 10}
    row |= {"nll_before": 1.0, "right_before": 0.8, "right_after": 0.6, "lost": 0.2, "nll_after": 1.5}
    text = kn.format_table(kn.edit_table(pd.DataFrame([row])))
    assert "low" not in text and "| 0.250 [-] |" in text


def test_other_arguments_are_refused_with_the_call():
    with pytest.raises(kn.ArgumentError, match=r"kn_lens\.effect_table\(effects\)"):
        kn.format_table([1, 2])
    with pytest.raises(kn.ArgumentError, match="form='LaTeX'; expected one of markdown, latex"):
        kn.format_table(TABLE, "LaTeX")
    with pytest.raises(kn.ArgumentError, match="digits=-1"):
        kn.format_table(TABLE, digits=-1)
