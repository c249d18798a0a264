"""Edits of the decoder's rows of encoder-decoders: undone bit by bit, exported, and read by transformers alone."""

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.hosts import ModelIdentity
from tests.edit_cases import bits, changed_rows, random_edit, same
from tests.encoder_decoders import FACTS, NAMES, loaded, logits_of, plain, prompts_of, rows_of
from tests.tiny import ENCODER_DECODERS, equal, tiny_checkpoint
from tests.tiny import loaded as loaded_other

NEURONS = kn.NeuronSet([(0, 3), (1, 0), (1, 7), (2, 23)])


@pytest.mark.parametrize("name", NAMES)
def test_an_update_adds_embeddings_to_rows_and_is_undone_bit_for_bit(name):
    """Also after an exception; the embeddings are those of the decoder."""
    model = loaded(name)
    before = bits(model)
    edit = kn.update_fact(model, FACTS[0], "Paris", NEURONS, allow_unknown=True)
    assert same(before, bits(model))
    assert edit.neurons == NEURONS
    predictions = kn.predict(model, prompts_of(name), k=1)["probability"].to_numpy()
    with pytest.raises(RuntimeError), edit.applied(model):
        assert not same(before, bits(model))
        changed = kn.predict(model, prompts_of(name), k=1)["probability"].to_numpy()
        raise RuntimeError
    assert not np.array_equal(changed, predictions)
    assert same(before, bits(model))


@pytest.mark.parametrize("name", NAMES)
def test_erased_neurons_are_suppressed_neurons(name):
    model, prompts = loaded(name), prompts_of(name)
    erased = kn.erase_neurons(model, NEURONS)
    with erased.applied(model):
        after = kn.measure(model, prompts, kn.Suppress(NEURONS))
    suppressed = kn.measure(model, prompts, kn.Suppress(NEURONS, position="all"))
    np.testing.assert_allclose(after["before"], suppressed["after"], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_checkpoint_equals_the_edited_model(name, tmp_path):
    """transformers loads it with the weights of the checkpoint, of which only these rows are replaced."""
    import transformers

    architecture, settings = ENCODER_DECODERS[name]
    source = tiny_checkpoint(architecture, tmp_path / "source", **settings)
    model = kn.load_model(source, dtype=torch.float64, device="cpu")
    before = bits(model)
    edit = random_edit(model, NEURONS)
    directory = kn.export(model, edit, tmp_path / "edited")
    assert same(before, bits(model))

    edited = kn.load_model(directory, dtype=torch.float64, device="cpu")
    prompts = kn.make_prompts(model, FACTS[:1])
    with edit.applied(model):
        equal_rows = kn.predict(model, prompts, k=3)
    again = kn.predict(edited, prompts, k=3)
    assert again.equals(equal_rows)
    assert changed_rows(model, edited) == NEURONS

    auto = getattr(transformers, architecture)
    options = {"dtype": torch.float64, "attn_implementation": "eager"}
    was, now = (auto.from_pretrained(path, **options).eval() for path in (source, directory))
    weights = was.state_dict(), now.state_dict()
    assert weights[0].keys() == weights[1].keys()
    differing = [key for key in weights[0] if not torch.equal(weights[0][key], weights[1][key])]
    assert len(differing) == len(NEURONS.by_layer()) and all("decoder" in key for key in differing)
    if "final_logits_bias" in weights[0]:
        assert weights[0]["final_logits_bias"].any()
    with torch.no_grad():
        logits = torch.stack([logits_of(now, row) for row in rows_of(prompts)])
    top = torch.tensor(again.query("rank == 0")["probability"].to_numpy())
    torch.testing.assert_close(logits.softmax(-1).amax(-1), top, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_an_update_are_moved_along_the_embeddings_of_the_decoder(name):
    model = loaded(name)
    embedding = plain(name).get_decoder().embed_tokens.weight
    ids = [prompts_of_answer(name, answer) for answer in ("Dublin", "Paris")]
    options = {"lambdas": (2.0, 3.0), "scaling": "plain", "signed": False, "allow_unknown": True}
    edit = kn.update_fact(model, FACTS[0], "Paris", NEURONS, **options)
    old, new = (embedding[answer].mean(0) for answer in ids)
    with edit.applied(model):
        rows = [kn.host_of(model).W_out(layer)[index].clone() for layer, index in NEURONS]
    for (layer, index), row in zip(NEURONS, rows, strict=True):
        equal(row, kn.host_of(model).W_out(layer)[index] - 2.0 * old + 3.0 * new)


def prompts_of_answer(name, answer):
    """The tokens of an answer behind a space."""
    fact = kn.Fact("Ireland", "P36", answer, ("The capital of [X] is [Y].",))
    return [row.target for row in rows_of(kn.make_prompts(loaded(name), fact))]


def test_files_of_neurons_say_that_they_are_the_decoders():
    model = loaded("BART")
    identity = ModelIdentity.of(model)
    assert identity.side == identity.as_dict()["side"] == "decoder"
    assert ModelIdentity.read(identity.as_dict()) == identity
    assert "side" not in ModelIdentity.of(loaded_other("GPT2LMHeadModel")).as_dict()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_encoder_are_edited_undone_saved_and_exported(name, tmp_path):
    """The edit knows its side: the model is enough to apply it, and no row of the decoder changes."""
    import transformers

    architecture, settings = ENCODER_DECODERS[name]
    source = tiny_checkpoint(architecture, tmp_path / "source", **settings)
    model = kn.load_model(source, dtype=torch.float64, device="cpu")
    encoder = kn.host_of(model, side="encoder")
    prompts = kn.make_prompts(encoder, FACTS[:2])
    before = bits(model)
    neurons = kn.NeuronSet([(0, 3), (1, 7)])
    update = kn.update_fact(encoder, FACTS[0], "Paris", neurons, allow_unknown=True, position="subject_last")
    erased = kn.erase_neurons(encoder, kn.NeuronSet([(1, 0)]))
    assert same(before, bits(model)) and update.checkpoint.side == erased.checkpoint.side == "encoder"
    update.save(tmp_path / "update.safetensors")
    again = kn.WeightEdit.load(tmp_path / "update.safetensors")
    assert again.digest == update.digest and again.checkpoint == update.checkpoint

    by_hooks = kn.measure(model, prompts, update)
    with again.applied(model), erased.applied(encoder):
        rows = kn.predict(model, prompts, k=3)
        assert not same(before, bits(model))
    with update.applied(model):
        applied = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet([])))
    assert same(before, bits(model))
    np.testing.assert_allclose(by_hooks["after"], applied["before"], rtol=1e-6)
    with pytest.raises(kn.EditError, match="encoder"):
        update.apply_(kn.host_of(model, side="decoder"))

    directory = kn.export(model, [update, erased], tmp_path / "edited")
    auto = getattr(transformers, architecture)
    was, now = (auto.from_pretrained(path, dtype=torch.float64).state_dict() for path in (source, directory))
    differing = [key for key in was if not torch.equal(was[key], now[key])]
    assert len(differing) == 2 and all("encoder" in key for key in differing)
    edited = kn.load_model(directory, dtype=torch.float64, device="cpu")
    assert kn.predict(edited, prompts, k=3).equals(rows)


def test_files_of_neurons_say_that_they_are_the_encoders(tmp_path):
    """Neurons, scores and identities of one side do not pass for those of the other."""
    model = loaded("BART")
    encoder, prompts = kn.host_of(model, side="encoder"), prompts_of("BART", "encoder")
    identity = ModelIdentity.of(encoder)
    assert identity.side == identity.as_dict()["side"] == "encoder"
    assert identity.difference(ModelIdentity.of(model)) == "side is encoder in the one and decoder in the other"
    scores = kn.attribute_to_file(model, tmp_path / "scores.parquet", prompts)
    attr = kn.read_attribution(scores, prompts)
    assert torch.equal(attr.total, kn.attribute(model, prompts).total)
    with pytest.raises(kn.KNLensError, match="prompts"):
        kn.read_attribution(scores, prompts_of("BART"))
    at_subjects = kn.attribute_to_file(encoder, tmp_path / "subjects.parquet", prompts, positions="subject")
    assert kn.read_position_attribution(at_subjects, prompts).positions.shape[0] == len(prompts)
