"""A file's model: told by the weights, wherever they were loaded from and in whatever type, and by nothing else."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.hosts.identity import ModelIdentity, weights_digest
from kn_lens.runs.found_files import check_one_model
from tests.tiny import tiny_checkpoint

NEURONS = {"P36/Ireland/Dublin": kn.NeuronSet([(1, 2)])}


def digest(model):
    return weights_digest(kn.host_of(model))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_checkpoint("BertForMaskedLM", tmp_path_factory.mktemp("identity") / "bert", torch.float32)


@pytest.fixture(scope="module")
def model(place):
    return kn.load_model(place)


def test_a_copy_elsewhere_and_another_type_are_the_same_model(place, model, tmp_path):
    copy = shutil.copytree(place, tmp_path / "copy")
    for where, dtype in ((copy, torch.float32), (place, torch.float64), (copy, torch.bfloat16)):
        again = kn.load_model(where, dtype=dtype)
        assert digest(again) == digest(model)
        assert ModelIdentity.of(model).difference(ModelIdentity.of(again)) is None


def test_other_weights_at_the_same_place_are_another_model(place, model):
    """Whichever weight it is: attention alone is what most adapters change."""
    original = ModelIdentity.of(model)
    names = [name for name, _ in kn.host_of(model).checkpoint.named_parameters()]
    for name in names[:: len(names) // 6]:
        again = kn.load_model(place)
        with torch.no_grad():
            dict(kn.host_of(again).checkpoint.named_parameters())[name].view(-1)[0] += 0.5
        assert original.difference(ModelIdentity.of(again)) == "their weights differ", name
    assert original.name == ModelIdentity.of(again).name


def test_the_digest_leaves_the_model_as_it_is_and_an_undone_edit_does_not_show(model):
    before = digest(model)
    with kn.erase_neurons(model, NEURONS["P36/Ireland/Dublin"]).applied(model):
        assert digest(model) != before
    assert digest(model) == before


def test_without_a_digest_the_name_decides(place, model, monkeypatch):
    named = ModelIdentity.of(model, with_digest=False)
    assert named.digest is None and named.difference(named) is None
    monkeypatch.chdir(place.parent)
    assert named.difference(replace(named, name="bert")) is None  # the same place, written in another way
    assert "names differ" in named.difference(replace(named, name="elsewhere"))
    assert ModelIdentity.read("bert").difference(named) is None


@pytest.mark.parametrize("said", [None, 3, [], {}, {"name": 3}, {"name": ""}, {"digest": "x"}, ""])
def test_what_names_no_model_is_unknown(said):
    assert ModelIdentity.read(said) is None


def test_fields_of_another_type_are_unknown():
    read = ModelIdentity.read({"name": "bert", "n_layers": True, "d_mlp": "24", "digest": 3, "dtype": "float32"})
    assert read == ModelIdentity(name="bert", dtype="float32")


def test_a_neuron_file_is_held_to_the_model_that_it_was_written_with(place, model, tmp_path):
    path = tmp_path / "neurons.json"
    kn.NeuronSet.write_many(path, NEURONS, model=model)
    assert json.loads(path.read_text())["meta"]["model"] == ModelIdentity.of(model).as_dict()
    copy = kn.load_model(shutil.copytree(place, tmp_path / "copy"))
    other = kn.load_model(tiny_checkpoint("BertForMaskedLM", tmp_path / "other", torch.float32, seed=1))
    causal = kn.load_model(tiny_checkpoint("GPT2LMHeadModel", tmp_path / "gpt2", torch.float32))
    for same in (None, model, copy, kn.host_of(copy)):
        assert kn.NeuronSet.read_many(path, model=same) == NEURONS
    with pytest.raises(kn.DataError, match="their weights differ"):
        kn.NeuronSet.read_many(path, model=other)
    with pytest.raises(kn.DataError, match=r"architecture is BertForMaskedLM in the one and GPT2LMHeadModel"):
        kn.NeuronSet.read(path, model=causal)


@pytest.mark.parametrize("meta", [{}, {"model": 3}, {"note": "by hand"}])
def test_a_neuron_file_without_a_model_is_any_models(model, tmp_path, meta):
    kn.NeuronSet.write_many(tmp_path / "neurons.json", NEURONS, **meta)
    assert kn.NeuronSet.read_many(tmp_path / "neurons.json", model=model) == NEURONS
    (tmp_path / "others.json").write_text('{"P36/Ireland/Dublin": [[1, 2]]}')
    assert kn.NeuronSet.read_many(tmp_path / "others.json", model=model) == NEURONS


def test_files_of_two_models_make_no_table_together(place, model, tmp_path):
    for name, of in {"a": model, "b": "elsewhere", "c": None}.items():
        kn.NeuronSet.write_many(tmp_path / f"{name}.json", NEURONS, **({} if of is None else {"model": of}))
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    check_one_model([a, c, a])
    check_one_model([c, b])
    with pytest.raises(kn.DataError, match=r"a.json holds neurons of .*bert, and .*b.json of elsewhere: their names"):
        check_one_model([a, c, b])
