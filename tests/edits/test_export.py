"""Exported checkpoints: equal to the edited model, written whole or not at all."""

import json

import pytest
import torch

import kn_lens as kn
from tests.edit_cases import bits, changed_rows, logits, random_edit, same
from tests.tiny import CAUSAL, MASKED, loaded, tiny_checkpoint, tiny_hf_model


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_an_exported_checkpoint_equals_the_edited_model(architecture, tmp_path):
    """transformers loads it with the weights of the checkpoint, of which only these rows are replaced."""
    import transformers

    source = tiny_checkpoint(architecture, tmp_path / "source")
    model = kn.load_model(source, dtype=torch.float64, device="cpu")
    before = bits(model)
    first = random_edit(model)
    with first.applied(model):
        second = random_edit(model, kn.NeuronSet([(1, 7), (0, 1)]), seed=1)
    directory = kn.export(model, [first, second], tmp_path / "edited")
    assert same(before, bits(model))

    edited = kn.load_model(directory, dtype=torch.float64, device="cpu")
    with (first + second).applied(model):
        assert torch.equal(logits(edited), logits(model))
    assert changed_rows(model, edited) == first.neurons | second.neurons

    auto = getattr(transformers, architecture)
    was, now = (auto.from_pretrained(path, dtype=torch.float64).state_dict() for path in (source, directory))
    assert was.keys() == now.keys()
    n_changed = sum(not torch.equal(was[name], now[name]) for name in was)
    assert n_changed == len((first + second).neurons.by_layer())
    tokenizers = [transformers.AutoTokenizer.from_pretrained(path) for path in (source, directory)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    record = json.loads((directory / "kn_lens_edits.json").read_text())
    assert [entry["digest"] for entry in record] == [first.digest, second.digest]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "source"]


def test_an_existing_directory_is_not_overwritten(tmp_path):
    model = loaded("BertForMaskedLM")
    (tmp_path / "there").mkdir()
    with pytest.raises(kn.EditError, match="there exists; expected the name of a directory to make"):
        kn.export(model, random_edit(model), tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_failed_export_leaves_no_files(tmp_path, monkeypatch):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    first, second = random_edit(model), random_edit(model, seed=1)  # of the same rows, but not one on the other
    with pytest.raises(kn.EditError, match="made for other rows"):
        kn.export(model, [first, second], tmp_path / "edited")

    def full(self, path, **_):
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(kn.EditError, match="edited cannot be written: No space left on device"):
        kn.export(model, first, tmp_path / "edited")
    assert list(tmp_path.iterdir()) == [] and same(before, bits(model))


def test_a_model_from_memory_is_exported_without_a_tokenizer(tmp_path):
    model = kn.load_model(tiny_hf_model("GPT2LMHeadModel"))
    directory = kn.export(model, random_edit(model), tmp_path / "edited")
    assert not any("token" in path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    "edits, directory, error, message",
    [
        ([], "nowhere", kn.ArgumentError, "expected a WeightEdit"),
        (None, "/nowhere/at/all", kn.EditError, "no directory /nowhere/at"),
    ],
)
def test_an_export_without_edits_or_a_place_is_refused(edits, directory, error, message):
    model = loaded("BertForMaskedLM")
    with pytest.raises(error, match=message):
        kn.export(model, random_edit(model) if edits is None else edits, directory)
