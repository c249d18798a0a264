"""Files of neuron sets, our own and those of other projects, and the matching of their keys with facts."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.neurons import match_facts, refine_released
from tests.refining import MANY_EXAMPLES, PAIRS, as_pairs, attributions, facts_of, naive_coarse

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@MANY_EXAMPLES
@given(sets=st.dictionaries(TEXT, PAIRS, min_size=1), note=TEXT)
def test_a_written_file_reads_back_equal(tmp_path_factory, sets, note):
    path = tmp_path_factory.mktemp("sets") / "neurons.json"
    written = {key: kn.NeuronSet(pairs) for key, pairs in sets.items()}
    kn.NeuronSet.write_many(path, written, model=note)
    assert kn.NeuronSet.read_many(path) == written
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["format"], document["version"], document["meta"]) == ("kn_lens.neurons", 1, {"model": note})
    assert [other.name for other in path.parent.iterdir()] == ["neurons.json"]


def test_read_takes_one_set_and_read_many_takes_sets_by_fact(tmp_path):
    facts = [kn.Fact("Ireland", "P36", "Dublin", uid="a/b"), kn.Fact("France", "P36", "Paris")]
    found = {facts[0]: kn.NeuronSet([(0, 1)]), facts[1]: kn.NeuronSet()}
    kn.NeuronSet.write_many(tmp_path / "many.json", found)
    assert match_facts(kn.NeuronSet.read_many(tmp_path / "many.json"), facts) == found
    with pytest.raises(kn.DataError, match=r"2 neuron sets.*read_many"):
        kn.NeuronSet.read(tmp_path / "many.json")
    found[facts[0]].write(tmp_path / "one.json", note=1)
    assert kn.NeuronSet.read(tmp_path / "one.json") == found[facts[0]]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "neurons.json"
    kn.NeuronSet([(0, 1)]).write(path)
    old = path.read_bytes()
    with pytest.raises(kn.ArgumentError, match="JSON"):
        kn.NeuronSet([(0, 2)]).write(path, model=object())

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(kn.DataError, match="No space left"):
        kn.NeuronSet([(0, 2)]).write(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_two_facts_with_the_same_key_are_refused(tmp_path):
    fact = kn.Fact("Ireland", "P36", "Dublin")
    with pytest.raises(kn.ArgumentError, match=r"P36/Ireland/Dublin"):
        kn.NeuronSet.write_many(tmp_path / "x.json", {fact: kn.NeuronSet(), fact.key: kn.NeuronSet()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, document, expected",
    [
        ("kn_bag-P36.json", [[[10, 188], [11, 500]], []], {"P36[0]": {(10, 188), (11, 500)}, "P36[1]": set()}),
        ("base_kn_bag-P101.json", [[], [[0, 1]]], {"P101[0]": set(), "P101[1]": {(0, 1)}}),
        ("kn_rel-P36.json", [[10, 188], [11, 500]], {"P36": {(10, 188), (11, 500)}}),
        ("mine.json", [[[3, 4, 0.25]]], {"[0]": {(3, 4)}}),  # a score behind the index
        ("neurons_0.json", {"48a2b323-a09c": [[10, 188], [6, 1096]]}, {"48a2b323-a09c": {(10, 188), (6, 1096)}}),
    ],
)
def test_files_of_the_released_code_and_of_eleutherai_are_read(tmp_path, name, document, expected):
    path = tmp_path / name
    path.write_text(json.dumps(document, indent=2))
    found = kn.NeuronSet.read_many(path)
    assert {key: as_pairs(neurons) for key, neurons in found.items()} == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 1, column 2"),
        ("", "not JSON"),
        ("[]", "expected neuron sets"),
        ("{}", "no neuron sets"),
        ("3", "expected neuron sets"),
        ("[1, 2]", "expected a list"),
        ('{"a": 3}', "'a': got 3"),
        ('{"a": [[1, 2, 3, 4]]}', "whole numbers from 0"),
        ('{"a": [[1, -2]]}', "whole numbers from 0"),
        ('{"a": [[1, 2.0]]}', "whole numbers from 0"),
        ('{"a": [[true, 2]]}', "whole numbers from 0"),
        ('{"a": [[1, 2]], "a": []}', "'a' stands there twice"),
        ('{"format": "kn_lens.neurons", "version": 2, "neurons": {}}', "version 2"),
        ('{"format": "other", "version": 1, "neurons": {}}', "'other'"),
        ('{"format": "kn_lens.neurons", "version": 1}', "'neurons' is None"),
        ("[" * 100_000, "JSON|nested"),
        ("\udcff", "cannot be read|not JSON"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, message):
    path = tmp_path / "neurons.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(kn.DataError, match=message):
        kn.NeuronSet.read_many(path)


def test_the_error_of_a_missing_file_names_a_similar_file(tmp_path):
    (tmp_path / "neurons.json").write_text("{}")
    with pytest.raises(kn.DataError, match=r"Did you mean 'neurons.json'"):
        kn.NeuronSet.read_many(tmp_path / "neuron.json")
    with pytest.raises(kn.DataError, match="no file"):
        kn.NeuronSet.read_many(tmp_path / "nowhere" / "neuron.json")


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from([0.35, 0.7]))
def test_refine_released_equals_refine(tmp_path_factory, attr, t, p):
    """The file holds what the released code writes: the scores from a tenth of the largest of each prompt."""
    path = tmp_path_factory.mktemp("released") / "TREx-all.rlt.jsonl"
    lines = []
    for i, fact in enumerate(attr.prompts.facts):
        line = []
        for scores in attr.scores[attr.prompts.fact_index == i].tolist():
            kept = [[layer, j, scores[layer][j]] for layer, j in sorted(naive_coarse(scores, 0.1))]
            line.append([{"relation": f"{fact.relation}(label)", "gold_obj": fact.object}, {"ig_gold": kept}])
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines))
    stored = refine_released(path, attr_threshold=t, share_threshold=p)
    assert match_facts(stored, attr.prompts.facts) == kn.refine(attr, attr_threshold=t, share_threshold=p)


def test_stored_attributions_of_each_metric_are_refined_alone(tmp_path):
    path = tmp_path / "P36.rlt.jsonl"
    scores = {"ig_gold": [[0, 1, 0.5], [0, 2, 0.05]], "ig_pred": [[1, 1, 0.5]], "base": [[2, 1, 3.0], [2, 2, 3.0]]}
    path.write_text(json.dumps([[{"relation": "P36(capital)"}, scores]] * 3))
    expected = {"ig_gold": [(0, 1)], "ig_pred": [(1, 1)], "base": [(2, 1), (2, 2)]}
    for metric, pairs in expected.items():
        assert refine_released(path, metric=metric) == {"P36[0]": kn.NeuronSet(pairs)}
    assert refine_released(path) == refine_released(path, metric="ig_gold")
    assert refine_released(path, attr_threshold=0.1) == {"P36[0]": kn.NeuronSet([(0, 1), (0, 2)])}


def test_stored_prompts_without_a_positive_score_have_no_neurons(tmp_path):
    path = tmp_path / "P36.rlt.jsonl"
    for pairs in ([], [[0, 1, 0.0]], [[0, 1, -0.5], [0, 2, -0.1]]):
        path.write_text(json.dumps([[{"relation": "P36"}, {"ig_gold": pairs}]] * 3))
        assert refine_released(path) == {"P36[0]": kn.NeuronSet()}


@pytest.mark.parametrize(
    "line, error, message",
    [
        ("{", kn.DataError, "line 1 is not JSON"),
        ("[]", kn.DataError, "line 1: got"),
        ("3", kn.DataError, "line 1: got 3"),
        ('[[{"relation": "P36"}, {"base": []}]]', kn.DataError, "no 'ig_gold' among base"),
        ('[[{"relation": "P36"}, {"ig_gold": [[1, 2]]}]]', kn.DataError, r"\[layer, index, score\]"),
        ('[[{"relation": "P36"}, {"ig_gold": 5}]]', kn.DataError, "got 5"),
        ('[[{"relation": "P36"}, {"ig_gold": []}]]', kn.ArgumentError, r"P36\[0\] has 1 prompt,"),
        ("", kn.DataError, "is empty"),
    ],
)
def test_malformed_attribution_files_are_refused(tmp_path, line, error, message):
    path = tmp_path / "P36.rlt.jsonl"
    path.write_text(line)
    with pytest.raises(error, match=message):
        refine_released(path)


def test_refine_released_refuses_a_threshold_below_the_stored_scores(tmp_path):
    with pytest.raises(kn.ArgumentError, match=r"0\.1 or more"):
        refine_released(tmp_path / "none.jsonl", attr_threshold=0.05)


# --- the facts they belong to ----------------------------------------------------------------------------


def test_keys_are_matched_to_facts():
    facts = [kn.Fact("Ireland", "P36", "Dublin", uid="u1"), kn.Fact("Dublin", "P1376", "Ireland"), *facts_of("P36")]
    neurons = kn.NeuronSet([(0, 1)])
    assert match_facts({"u1": neurons, "P36[2]": neurons, "P1376/Dublin/Ireland": neurons}, facts) == dict.fromkeys(
        [facts[0], facts[3], facts[1]], neurons
    )
    with pytest.raises(kn.DataError, match=r"'P36\[3\]' of the neuron sets stands for 0 .*Did you mean 'P36"):
        match_facts({"P36[3]": neurons}, facts)
    with pytest.raises(kn.DataError, match="two of the neuron sets"):
        match_facts({"u1": neurons, "P36[0]": neurons}, facts)
    twins = [kn.Fact("a", "P", "x", uid="u"), kn.Fact("b", "P", "y", uid="u")]
    with pytest.raises(kn.DataError, match="stands for 2"):
        match_facts({"u": neurons}, twins)


def test_many_facts_are_matched_by_uid():
    facts = [kn.Fact(f"s{i}", f"P{i % 34}", "o", uid=str(i)) for i in range(3000)]
    shuffled = random.Random(0).sample(facts, len(facts))
    sets = {fact.uid: kn.NeuronSet([(0, int(fact.uid))]) for fact in shuffled}
    assert all(as_pairs(found) == {(0, int(fact.uid))} for fact, found in match_facts(sets, facts).items())
