"""The page of a comparison, read back with an HTML parser and compared with the tables of the comparison."""

import html
import re
from html.parser import HTMLParser

import pytest

import kn_lens as kn
from kn_lens.errors import ArgumentError
from kn_lens.reports.descriptions import estimate_text
from tests.made_run import made_facts, of_objects, write_run

SAMPLING = {"n_resamples": 20, "n_permutations": 20}
FORMS = {"accuracy": ".1%", "known": ".1%", "mean_depth": ".0%"}
LABELS = {
    "accuracy": "answers correct",
    "neurons_per_fact": "neurons per fact",
    "mean_depth": "mean depth of the neurons",
    "suppress_own": "suppressed, the fact itself",
}


class Tables(HTMLParser):
    """The tables of a page: caption and rows of texts."""

    def __init__(self, text):
        super().__init__()
        self.tables = []
        self.is_in = {"caption": False, "th": False, "td": False}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in self.is_in:
            self.is_in[tag] = True
            if tag != "caption":
                self.tables[-1]["rows"][-1].append("")

    def handle_endtag(self, tag):
        if tag in self.is_in:
            self.is_in[tag] = False

    def handle_data(self, data):
        if self.is_in["caption"]:
            self.tables[-1]["caption"] += data
        elif self.is_in["th"] or self.is_in["td"]:
            self.tables[-1]["rows"][-1][-1] += data

    def captioned(self, caption):
        (table,) = (table for table in self.tables if table["caption"] == caption)
        return table["rows"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    facts = made_facts(0)
    others = of_objects(made_facts(1, n_layers=6), facts)
    return {
        "<b>masked</b>": write_run(folder / "a", facts),
        "causal": write_run(folder / "b", others, n_layers=6, kind="causal"),
        "third": write_run(folder / "c", of_objects(made_facts(2), facts)),
    }


def written(runs, folder, *names):
    comparison = kn.compare_runs({name: runs[name] for name in names}, **SAMPLING)
    return comparison, kn.write_comparison(comparison, folder / "comparison.html").read_text()


def test_two_runs_stand_side_by_side_with_their_difference(runs, tmp_path):
    comparison, page = written(runs, tmp_path, "<b>masked</b>", "causal")
    header, *rows = Tables(page).captioned("Facts known by all models")
    assert header == [
        "statistic", "<b>masked</b>", "<b>masked</b>, control", "causal", "causal, control", "difference",
    ]  # fmt: skip
    by_label = {row[0]: row for row in rows}
    values = comparison.values.query("fact_set == 'known_by_all' and neuron_set in ('', 'found')")
    differences = comparison.differences.query("fact_set == 'known_by_all'")
    assert len(rows) == values["statistic"].nunique() > 5
    for statistic, label in LABELS.items():
        form = "+.1%" if statistic == "suppress_own" else FORMS.get(statistic, ".2f")
        cells = values[values["statistic"] == statistic].set_index("run")
        assert by_label[label][1] == estimate_text(cells.loc["<b>masked</b>"], form)
        assert by_label[label][3] == estimate_text(cells.loc["causal"], form)
        difference = differences[differences["statistic"] == statistic].iloc[0]
        assert by_label[label][5] == estimate_text(difference, f"+{form.lstrip('+')}")


def test_differences_over_six_relations_have_their_p(tmp_path):
    facts = made_facts(0, sizes=(2,) * 6, right=4)
    runs = {"a": write_run(tmp_path / "a", facts)}
    runs["b"] = write_run(tmp_path / "b", of_objects(made_facts(1, sizes=(2,) * 6, right=4), facts))
    comparison, page = written(runs, tmp_path, "a", "b")
    header, *rows = Tables(page).captioned("Facts known by all models")
    (row,) = (row for row in rows if row[0] == LABELS["suppress_own"])
    is_shown = "fact_set == 'known_by_all' and statistic == 'suppress_own'"
    expected = comparison.differences.query(is_shown)["p_relations_holm"].iloc[0]
    assert header[-1] == "p of relations" and row[-1] == f"{expected:.3f}"


def test_three_runs_have_a_column_each_and_no_difference(runs, tmp_path):
    _, page = written(runs, tmp_path, *runs)
    header, *rows = Tables(page).captioned("Facts known by all models")
    assert header[1::2] == list(runs) and len(header) == 7
    assert all(len(row) == 7 for row in rows)


def test_page_names_models_and_no_path_and_is_text_where_names_are_markup(runs, tmp_path):
    _, page = written(runs, tmp_path, "<b>masked</b>", "causal")
    assert "<title>&lt;b&gt;masked&lt;/b&gt; beside causal - kn_lens</title>" in page
    assert "<b>masked" not in page and str(runs["causal"]) not in page
    assert re.search(r'Content-Security-Policy" content="default-src', page) and 'src="http' not in page


def test_figures_have_text_alternatives_with_the_values_of_each_run(runs, tmp_path):
    comparison, page = written(runs, tmp_path, "<b>masked</b>", "causal")
    figures = dict(re.findall(r'data-figure="(\w+)" role="img"\s+aria-label="([^"]*)', page))
    assert set(figures) == {"effects", "depth"}
    row = comparison.values.query(
        "fact_set == 'known_by_all' and neuron_set == 'found' and statistic == 'suppress_own' and run == 'causal'"
    )
    assert f"causal {estimate_text(row.iloc[0], '+.0%')}" in html.unescape(figures["effects"])
    assert "causal: " in figures["depth"] and "lie in layers 0 to" in figures["depth"]


def test_tables_are_closed_and_have_words_for_columns(runs, tmp_path):
    comparison, page = written(runs, tmp_path, "<b>masked</b>", "causal")
    assert page.count("<details>") == sum(len(table) > 0 for table in comparison.tables.values())
    titles = {title for table in Tables(page).tables for title in table["rows"][0]}
    assert not [title for title in titles if "_" in title]


def test_directory_as_output_file_is_refused(runs, tmp_path):
    comparison = kn.compare_runs({name: runs[name] for name in ("causal", "third")}, **SAMPLING)
    with pytest.raises(ArgumentError, match="is a directory"):
        kn.write_comparison(comparison, tmp_path)
