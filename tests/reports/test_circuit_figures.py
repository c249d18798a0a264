import pytest

import kn_lens as kn
from kn_lens.circuits import AnswerNode, Edge, HeadNode, NeuronNode
from kn_lens.reports import figures
from kn_lens.reports.style import BLUE, ORANGE, description_of


@pytest.fixture
def circuit():
    nodes = [HeadNode(0, 1, 2), NeuronNode(1, 7, 2), NeuronNode(1, 9, 2), NeuronNode(3, 5, 4)]
    scores = dict(zip(nodes, (0.5, 2.0, -1.0, 0.1), strict=True))
    edges = {Edge(nodes[0], nodes[1], "key"): 0.9, Edge(nodes[1], AnswerNode(), "logits"): -0.3}
    meta = {"prompt": "<b>A & B</b>", "tokens": ["The", " cap", "ital", " of", " X"]}
    return kn.Circuit(nodes, scores, edges, meta)


def traces(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_graph_has_every_node_at_its_layer_and_position(circuit):
    figure = circuit.plot()
    drawn = traces(figure)
    assert set(drawn) == {"answer", "neurons", "heads"}
    assert list(drawn["heads"].text) == ["L0H1@2"] and drawn["heads"].marker.symbol == "square"
    places = dict(zip(drawn["neurons"].text, zip(drawn["neurons"].x, drawn["neurons"].y, strict=True), strict=True))
    assert places["L3N5@4"] == (4, 3)
    assert places["L1N7@2"][1] == places["L1N9@2"][1] == 1
    assert places["L1N7@2"][0] != places["L1N9@2"][0] and abs(places["L1N7@2"][0] - 2) < 0.5
    colors = dict(zip(drawn["neurons"].text, drawn["neurons"].marker.color, strict=True))
    assert (colors["L1N7@2"], colors["L1N9@2"]) == (BLUE, ORANGE)
    sizes = dict(zip(drawn["neurons"].text, drawn["neurons"].marker.size, strict=True))
    assert sizes["L1N7@2"] > sizes["L1N9@2"] > sizes["L3N5@4"]
    assert drawn["answer"].y[0] > 3
    assert list(figure.layout.xaxis.ticktext) == ["2<br>ital", "3<br>of", "4<br>X"]


def test_edges_are_lines_between_their_nodes_as_wide_as_their_weight(circuit):
    figure = circuit.plot()
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert sorted(trace.line.width for trace in lines) == [0.6, 3.0]
    widest = max(lines, key=lambda trace: trace.line.width)
    assert (widest.x[0], widest.y[0]) == (traces(figure)["heads"].x[0], traces(figure)["heads"].y[0])
    assert len([trace for trace in circuit.plot(n_edges=1).data if trace.mode == "lines"]) == 1
    assert not [trace for trace in kn.Circuit(circuit).plot().data if trace.mode == "lines"]


def test_text_is_literal_and_described(circuit):
    figure = circuit.plot()
    assert figure.layout.title.text == "&lt;b&gt;A &amp; B&lt;/b&gt;"
    text = description_of(figure)
    assert "3 neurons and 1 head in layers 0 to 3" in text
    assert "L1N7@2 +2.00" in text and "L0H1@2 to L1N7@2 (key) +0.90" in text


def test_nodes_for_all_positions_stand_in_a_column_of_their_own():
    figure = kn.Circuit(["L1N7", "L2N8@0"]).plot()
    assert list(figure.layout.xaxis.ticktext) == ["all", "0"]


def test_notebooks_show_a_graph_or_a_table(circuit):
    html = circuit._repr_html_()
    assert "3 neurons and 1 heads" in html or "L1N7@2" in html
    assert "0 neurons" in kn.Circuit()._repr_html_()


def test_curve_has_a_panel_for_each_measure():
    model = kn.load_model("world-gpt2")
    facts = [fact for fact in kn.FactSet.world() if fact.relation == "P36"][:20]
    pairs = kn.counterfactual_pairs(model, facts).select([0, 20, 40])
    measured = kn.faithfulness(model, kn.circuit_scores(model, pairs), sizes=[5, 50])
    figure = measured.plot()
    assert len(figure.data) == 6
    curve = measured.curve().set_index(["set", "measure", "size"])["value"]
    first = figure.data[0]
    assert first.name == "circuit" and list(first.x) == [5, 50]
    assert list(first.y) == [curve["circuit", "faithfulness", 5], curve["circuit", "faithfulness", 50]]
    assert "Completeness, random nodes:" in description_of(figure)
    with pytest.raises(kn.ArgumentError, match="one size each"):
        kn.faithfulness(model, kn.circuit_scores(model, pairs), kn.Circuit(["L0N1@0"])).plot()


def test_other_tables_are_refused():
    for draw, source in ((figures.circuit, "to_frame"), (figures.circuit_curve, "reproduce")):
        with pytest.raises(kn.ArgumentError, match=source):
            draw([1])
