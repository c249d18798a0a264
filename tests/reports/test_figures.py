"""Figures show the numbers of their tables as marks and error bars, and text from the data literally."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens import figures
from kn_lens.errors import ArgumentError
from kn_lens.interventions import effect_table
from kn_lens.reports.descriptions import number_text
from kn_lens.reports.style import BLUE, GREEN, GREY, ORANGE, PURPLE, description_of
from tests.synthetic_run import write_run


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("figures") / "run")
    return {path.stem: pd.read_csv(path) for path in (run / "tables").glob("*.csv")}


def marks(figure, axis="x"):
    """Return (value, low, high) of every mark with an error bar, in order of the figure."""
    found = []
    for trace in figure.data:
        bars = trace[f"error_{axis}"]
        if trace.type == "scatter" and bars.array is not None:
            for value, more, less in zip(trace[axis], bars.array, bars.arrayminus, strict=True):
                found.append((value, value - less, value + more))
    return np.array(sorted(found))


def expected(rows):
    return np.array(sorted(map(tuple, rows[["value", "low", "high"]].to_numpy())))


CASES = {
    "layer_distribution": ("figure3", "y", lambda table: table[table["neuron_set"] != "random"]),
    "effects": ("figures4_5", "x", lambda table: table),
    "effects_by_relation": (
        "figures4_5_by_relation",
        "x",
        lambda table: table[(table["scope"] == "own") & (table["neuron_set"] != "activation")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_marks_and_error_bars_are_the_values_and_intervals_of_the_table(tables, name):
    source, axis, rows = CASES[name]
    figure = getattr(figures, name)(tables[source])
    assert np.allclose(marks(figure, axis), expected(rows(tables[source])))


def test_result_of_effect_table_is_drawn_directly():
    row = {"relation": "P36", "n_neurons": 4, "n_prompts": 10, "before": 0.5}
    cells = [("found", "own", 0.2), ("found", "own", 0.3), ("found", "other", 0.5), ("random", "own", 0.45)]
    records = pd.DataFrame(
        [
            {**row, "neuron_set": kind, "scope": scope, "after": after + i / 100}
            for kind, scope, after in cells
            for i in range(-4, 5)
        ]
    )
    table = effect_table(records)
    drawn = marks(figures.effects(table.assign(factor=0.0)))
    assert np.allclose(drawn, expected(table.rename(columns={"change_ratio": "value"})))
    assert np.allclose(drawn[:, 0], [-0.5, -0.1, 0.0])
    by_relation = effect_table(records, by_relation=True).assign(factor=2.0)
    assert np.allclose(marks(figures.effects_by_relation(by_relation))[:, 0], [-0.5, -0.1])


def test_dose_response_is_zero_at_factor_one(tables):
    figure = figures.dose_response(tables["dose_response"])
    assert len(figure.data) == 3 * 2
    for trace in figure.data:
        assert list(trace.x) == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0] and trace.y[2] == 0
    drawn = marks(figure, "y")
    assert np.allclose(drawn[drawn[:, 0] != 0], expected(tables["dose_response"]))


def test_values_of_the_paper_are_drawn_as_diamonds(tables):
    figure = figures.effects(tables["figures4_5"])
    paper = [trace for trace in figure.data if "Dai" in (trace.name or "")]
    assert [value for trace in paper for value in trace.x] == [-0.29]


def test_controls_are_grey_and_nothing_else_is(tables):
    for trace in figures.effects(tables["figures4_5"]).data:
        shown = "".join(trace.hovertemplate)
        assert (trace.marker.color == GREY) == ("random neurons" in shown), shown


@pytest.mark.parametrize("color", [BLUE, ORANGE, GREEN, PURPLE, GREY])
@pytest.mark.parametrize("back", ["#ffffff", "#14181d"])
def test_colours_stand_out_from_both_themes(color, back):
    def light(code):
        parts = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([light(color), light(back)])
    assert (high + 0.05) / (low + 0.05) >= 3


def test_map_has_the_most_frequent_neurons_with_the_share_of_each_relation():
    cells = [("a", 1, 5, 0.5, 2), ("b", 1, 5, 0.25, 1), ("b", 0, 3, 1.0, 4), ("a", 0, 9, 0.25, 1)]
    table = pd.DataFrame(cells, columns=["relation", "layer", "index", "share", "n_facts"])
    (heat,) = figures.neuron_relation_map(table, top=2).data
    assert list(heat.x) == ["a", "b"] and list(heat.y) == ["L1N5", "L0N3"]  # of a first, then of b
    assert [list(row) for row in heat.z] == [[0.5, 0.25], [None, 1.0]]
    assert [list(row) for row in heat.customdata] == [[2, 1], [0, 4]]


def test_neuron_scores_and_predictions_keep_the_order_of_the_table():
    scores = pd.DataFrame(
        {"layer": [3, 2], "index": [7, 9], "score": [0.5, 0.2], "low": [0.4, 0.0], "high": [0.6, 0.3]}
    )
    figure = figures.neuron_scores(scores)
    assert figure.layout.yaxis.ticktext == ("L3N7", "L2N9") and list(figure.data[0].y) == [2, 1]
    assert np.allclose(marks(figure), [(0.2, 0.0, 0.3), (0.5, 0.4, 0.6)])
    effect = pd.DataFrame({"text": ["A <b>", "\x1bB\u202e"], "before": [0.9, 0.8], "after": [0.1, 0.7]})
    _, before, after = figures.predictions(effect).data
    assert (list(before.x), list(after.x)) == ([0.9, 0.8], [0.1, 0.7])
    assert figures.predictions(effect).layout.yaxis.ticktext == ("A &lt;b&gt;", r"\x1bB\u202e")


def test_text_alternative_of_a_figure_says_its_values(tables):
    table = tables["figures4_5"]
    text = description_of(figures.effects(table))
    for row in table.itertuples():
        assert f"{number_text(row.value, '+.0%')} ({number_text(row.low, '+.0%')} to" in text
    assert "Dai et al. (2022), knowledge neurons suppressed (factor 0): \N{MINUS SIGN}29%" in text
    changed = table.assign(value=table["value"] + 1)
    assert description_of(figures.effects(changed)) != text

    layers = description_of(figures.layer_distribution(tables["figure3"]))
    found = tables["figure3"].query("neuron_set == 'found'").sort_values("value")
    assert f"in layer {found['layer'].iloc[-1]}" in layers and number_text(found["value"].iloc[-1], ".0%") in layers
    effect = pd.DataFrame({"text": ["A <b>", "B"], "before": [0.9, 0.5], "after": [0.1, 0.7]})
    text = description_of(figures.predictions(effect))
    assert "0.700 before and 0.400 after" in text and "falls in 1 of" in text and "“A <b>”, from 0.900 to 0.100" in text


def test_text_alternative_of_many_rows_gives_extremes_and_median(tables):
    table = pd.DataFrame({"relation": [f"P{i}" for i in range(101)], "value": np.arange(101) / 100})
    figure = figures.estimates(table.assign(low=np.nan, high=np.nan), "relation", title="t", value="share", form=".0%")
    assert description_of(figure) == "Dot plot of share: 101 values from 0% (P0) to 100% (P100), median 50%."


def test_table_without_a_column_is_refused_with_the_nearest_column(tables):
    with pytest.raises(ArgumentError, match=r"no column 'value'.*Did you mean 'values'"):
        figures.effects(tables["figures4_5"].rename(columns={"value": "values"}))
    with pytest.raises(ArgumentError, match="empty"):
        figures.dose_response(tables["dose_response"].head(0))


def test_pages_of_figures_share_one_library_and_load_nothing_else(tables, tmp_path):
    name = "</script><script>alert(1)</script>"
    table = tables["figures4_5_by_relation"].replace({"relation": {"P1": name}})
    drawn = {"effects": figures.effects(tables["figures4_5"]), "relations": figures.effects_by_relation(table)}
    written = figures.save_figures(drawn, tmp_path / "figures")
    assert [path.name for path in written] == ["effects.html", "relations.html"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "effects.html",
        "plotly.min.js",
        "relations.html",
    ]
    for path in written:
        text = path.read_text()
        assert '<html lang="en">' in text and "<title>Effect" in text
        assert 'role="img" aria-label="Dot plot of the relative change' in text
        assert 'src="plotly.min.js"' in text and "alert(1)</script>" not in text
        assert not any(address in text for address in ('src="http', 'href="http', "cdn."))


def test_unknown_formats_are_refused_before_anything_is_written(tables, tmp_path):
    with pytest.raises(ArgumentError, match=r"expected some of html, png, svg\. Did you mean 'svg'"):
        figures.save_figures({"effects": figures.effects(tables["figures4_5"])}, tmp_path / "new", ["html", "svgz"])
    assert not (tmp_path / "new").exists()


NO_TABLES = (None, "figure3", [1, 2], {"value": [1]}, pd.Series([1.0]), kn.NeuronSet(["L0N1"]))
"""Arguments that are easy to take for a table."""
RUN = "kn_lens.reproduce(model, facts, 'run')"


@pytest.mark.parametrize(
    ("draw", "call"),
    [
        (figures.layer_distribution, f"{RUN}['figure3']"),
        (figures.effects, f"{RUN}['figures4_5']"),
        (figures.effects_by_relation, f"{RUN}['figures4_5_by_relation']"),
        (figures.dose_response, f"{RUN}['dose_response']"),
        (figures.editors, "kn_lens.reproduce(model, facts, 'run', stages=['editors'])['editors']"),
        (
            partial(figures.estimates, label="x", title="", value=""),
            f"{RUN}['stability']",
        ),
        (figures.neuron_relation_map, "pandas.DataFrame({'relation': "),
        (figures.neuron_scores, "attr.top()"),
        (figures.predictions, "kn_lens.measure(model, prompts, kn_lens.Suppress(neurons))"),
        (partial(figures.runs_side_by_side, title="", value=""), "kn_lens.compare_runs(runs).values"),
        (figures.depth_side_by_side, "kn_lens.compare_runs(runs).depth"),
    ],
)
def test_what_is_no_table_is_refused_with_the_call_that_returns_one(draw, call):
    for wrong in NO_TABLES:
        with pytest.raises(kn.ArgumentError, match=rf"^Got .* as table; expected a table: {re.escape(call)}"):
            draw(wrong)


def test_what_are_no_figures_by_name_are_refused(tmp_path):
    for wrong in (None, "scores", pd.DataFrame({"x": [1]})):
        with pytest.raises(kn.ArgumentError, match=r"expected figures by name: \{'scores': attr\.plot\(\)\}"):
            figures.save_figures(wrong, tmp_path / "figures")
    with pytest.raises(kn.ArgumentError, match="as the figure 'a'; expected a figure"):
        figures.save_figures({"a": pd.DataFrame({"x": [1]})}, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
