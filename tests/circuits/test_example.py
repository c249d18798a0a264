"""The example runs, with templates and facts of an embedded model."""

import importlib.util
from pathlib import Path

import pytest

import kn_lens as kn

SCRIPT = Path(__file__).parents[2] / "examples" / "circuits.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("circuits_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_of_the_example(example, capsys, tmp_path):
    model = kn.load_model("world-gpt2")
    facts = kn.FactSet.world().of("P36")[:30]
    template = facts[0].templates[0]
    known = example.known_facts(model, facts, template)
    assert 10 < len(known) <= 30
    pairs = example.pairs_of(model, known, template)
    circuits = example.find("one hop, neurons", model, pairs, tmp_path / "out", kinds="neuron")
    example.SIZES = (10, 100)
    example.curve("by size", model, pairs, ["neuron"])
    printed = capsys.readouterr().out
    assert f"{len(circuits)} facts" in printed and "nodes that keep 80%: median" in printed
    assert "completeness 10" in printed
    assert kn.Circuit.load(tmp_path / "out" / "one-hop-neurons-0.json") == circuits[0]
    assert all(fact.templates == (example.TWO_HOPS,) for fact in example.two_hop_facts(kn.FactSet.world()))
