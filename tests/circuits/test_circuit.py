import pytest

import kn_lens as kn
from kn_lens.circuits import AnswerNode, Circuit, Edge, HeadNode, NeuronNode, node_of

NODES = [NeuronNode(2, 7, 4), NeuronNode(2, 7, 3), HeadNode(0, 1, 4), NeuronNode(3, 1)]
EDGE = Edge(HeadNode(0, 1, 4), NeuronNode(2, 7, 4), "key")


def test_names_are_read_back():
    for node in NODES:
        assert node_of(str(node)) == node
    for name in ("L2", "N7@4", "L2N7@", "L2N-7", "L2n7", 3):
        with pytest.raises(kn.ArgumentError):
            node_of(name)


def test_operators_are_those_of_sets():
    first, second = Circuit(NODES[:3]), Circuit(NODES[2:])
    assert set(first | second) == set(NODES)
    assert list(first & second) == [HeadNode(0, 1, 4)]
    assert first - second == Circuit(NODES[:2])
    assert first == Circuit(["L2N7@4", "L2N7@3", "L0H1@4"])
    assert len({first, Circuit(NODES[:3])}) == 1
    assert (first.n_neurons, first.n_heads) == (2, 1)
    assert first.sizes == {("neuron", 2, 4): 1, ("neuron", 2, 3): 1, ("head", 0, 4): 1}
    assert first.neurons == kn.NeuronSet([(2, 7)])


def test_file_has_all_of_the_circuit(tmp_path):
    edges = {EDGE: 0.25, Edge(NODES[0], AnswerNode(), "logits"): -1.5}
    circuit = Circuit(NODES, {NODES[0]: 0.1 + 0.2}, edges, {"prompt": "Île\u202e", "model": "x"})
    circuit.save(tmp_path / "c.json")
    read = Circuit.load(tmp_path / "c.json")
    assert read == circuit
    assert dict(read.scores) == dict(circuit.scores)
    assert dict(read.edges) == edges
    assert dict(read.meta) == dict(circuit.meta)
    (tmp_path / "d.json").write_text("[1]")
    for name in ("d.json", "none.json"):
        with pytest.raises(kn.DataError, match="no circuit"):
            Circuit.load(tmp_path / name)


def test_edges_that_cannot_be_are_refused():
    with pytest.raises(kn.ArgumentError, match="no input 'v'"):
        Edge(NODES[0], NeuronNode(3, 1, 4), "v")
    with pytest.raises(kn.ArgumentError, match="does not read what L2N7@4 writes"):
        Edge(NODES[0], HeadNode(0, 1, 4), "v")
    with pytest.raises(kn.ArgumentError, match="outside the circuit"):
        Circuit(NODES[1:], edges={EDGE: 1.0})


def test_table_has_the_largest_scores_first():
    table = Circuit(NODES, {NODES[1]: -2.0, NODES[2]: 1.0}).to_frame()
    assert table["node"].tolist()[:2] == ["L2N7@3", "L0H1@4"]
    assert table["kind"].tolist()[:2] == ["neuron", "head"]
    assert Circuit().to_frame().empty


class TestTransformerLens:
    @pytest.fixture(autouse=True)
    def analysis(self):
        module = pytest.importorskip("transformer_lens.tools.analysis")
        if not hasattr(module, "Node"):
            pytest.skip("this TransformerLens has no nodes")
        return module

    def test_heads_and_their_edges_come_back(self, analysis):
        heads = [HeadNode(0, 1, 4), HeadNode(2, 0, 4), HeadNode(3, 1, 4)]
        edges = {
            Edge(heads[0], heads[1], "q"): 0.0,
            Edge(heads[0], heads[2], "v"): 0.0,
            Edge(heads[2], AnswerNode(), "logits"): 0.0,
        }
        circuit = Circuit(heads, edges=edges)
        assert Circuit.from_transformer_lens(Circuit(heads).to_transformer_lens()) == circuit
        if not hasattr(analysis, "FaithfulnessConfig"):
            with pytest.raises(kn.UnsupportedModelError, match=r"expected 4\.3"):
                circuit.to_transformer_lens(read_pos=4, n_layers=5)
            return
        items = circuit.to_transformer_lens(read_pos=4, n_layers=5)
        assert [(source.kind, target.kind) for source, target in items] == [
            ("attn_head_out", "q_input"),
            ("attn_head_out", "v_input"),
            ("attn_head_out", "logits"),
        ]
        read = Circuit.from_transformer_lens(items)
        assert read == circuit and dict(read.edges) == edges

    def test_scores_come_with_a_mapping_and_mlps_become_their_neurons(self, analysis):
        head = analysis.Node(kind="attn_head_out", layer=0, head=1, position=4)
        assert Circuit.from_transformer_lens({head: 0.5}).scores == {HeadNode(0, 1, 4): 0.5}
        mlp = analysis.Node(kind="mlp_out", layer=2, position=4)
        assert Circuit.from_transformer_lens([mlp], d_mlp=3) == Circuit(["L2N0@4", "L2N1@4", "L2N2@4"])

    def test_what_would_be_lost_is_refused(self, analysis):
        for circuit, message in (
            (Circuit(["L2N7@4"]), "is a neuron"),
            (Circuit(["L2H1"]), "all positions"),
            (Circuit(["L2H1@4"], edges={Edge(HeadNode(2, 1, 4), AnswerNode(), "logits"): 1.0}), "read_pos="),
        ):
            with pytest.raises(kn.ArgumentError, match=message):
                circuit.to_transformer_lens()
        mlp = analysis.Node(kind="mlp_out", layer=2, position=4)
        for items, d_mlp in (
            ([analysis.Node(kind="embed", position=0)], 3),
            ([mlp], None),
            ({mlp: 0.5}, 3),
        ):
            with pytest.raises(kn.ArgumentError, match="no neuron and no head"):
                Circuit.from_transformer_lens(items, d_mlp=d_mlp)
