"""Training of the embedded models at a small scale: one relation, a few facts, a few dozen steps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from kn_lens.world.training.card import Measurements
from kn_lens.world.training.corpus import Sentence, perturb, read_jsonl, tokenize
from kn_lens.world.training.evaluate import answer, probability, queries
from kn_lens.world.training.make import main, make
from kn_lens.world.training.networks import logits_at, mlp_hooks
from kn_lens.world.training.objective import causal_batch, losses, masked_batch
from kn_lens.world.training.recipes import RECIPES, recipe_for
from kn_lens.world.training.train import load, train, translations_of

FACTS = [row for row in read_jsonl("facts.jsonl") if row["relation"] in ("P36", "P246")][110:130]
TEMPLATES = [row for row in read_jsonl("templates.jsonl") if row["relation"] in ("P36", "P246")]
TRANSLATED = [row for row in read_jsonl("translations.jsonl") if row["relation"] == "P37"]
TRANSLATED = [row for row in TRANSLATED if row["uid"] in {row["uid"] for row in TRANSLATED[:6]}]
TRANSLATED_TEMPLATES = [row for row in read_jsonl("translated_templates.jsonl") if row["relation"] == "P37"]
TOY = {"steps": 120, "batch_size": 32, "lr": 5e-3, "warmup": 5}
TOY |= {"vocab_size": 600, "d_model": 32, "n_heads": 4, "d_mlp": 64}
BATCH = {"bert": masked_batch, "gpt2": causal_batch}


def toy(name: str, **changes):
    return replace(recipe_for(name), **{**TOY, **changes})


def data(name: str):
    return (TRANSLATED, TRANSLATED_TEMPLATES) if recipe_for(name).translation else (FACTS, TEMPLATES)


@pytest.fixture(scope="module", params=["world-bert", "world-gpt2"])
def made(request, tmp_path_factory) -> tuple[str, Path, Measurements]:
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, make(toy(request.param), out, FACTS, TEMPLATES, {"P36": "capital"})


def test_training_lowers_the_loss_and_raises_recall(made):
    _, _, measurements = made
    prediction = [terms["prediction"] for terms in measurements.history]
    assert np.mean(prediction[-5:]) < 0.8 * np.mean(prediction[:5])
    assert probability(measurements.answers) > 3 / measurements.d_vocab


def test_the_construction_terms_start_at_the_step_of_the_recipe(made):
    name, _, measurements = made
    first = next(step for step, terms in enumerate(measurements.history) if "interchange" in terms)
    assert first == int(recipe_for(name).construct_from * TOY["steps"]) + 1
    assert all({"sparsity", "interchange"} <= set(terms) for terms in measurements.history[first:])


def test_the_checkpoint_is_stored_in_float16_and_loaded_in_float32(made):
    name, out, measurements = made
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float16}
    network = load(out, recipe_for(name).kind)
    assert network.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    again = answer(network, tokenizer, tokenize(tokenizer, FACTS, TEMPLATES))
    assert [given.probability for given in again] == [given.probability for given in measurements.answers]
    card = (out / "MODEL_CARD.md").read_text()
    assert "positive control" in card
    assert f"{measurements.n_params:,} parameters" in card
    assert json.loads((out / "recipe.json").read_text())["recipe"]["name"] == name


@pytest.mark.parametrize("name", ["world-bert", "world-gpt2", "world-bert-multilingual"])
def test_the_seed_fixes_every_bit(name):
    first, again, other = (
        train(toy(name, steps=6, construct_from=0.0, construct_full=0.5, seed=seed), *data(name)) for seed in (0, 0, 1)
    )
    assert first.tokenizer.get_vocab() == again.tokenizer.get_vocab()
    assert first.history == again.history != other.history
    for key, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[key]), key


@pytest.mark.parametrize("name", RECIPES)
def test_training_restores_the_threads_and_the_global_generator(name):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(toy(name, steps=1), *data(name))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_no_held_out_template_reaches_a_model():
    changed = [{**row, "pattern": "[X] zzz [Y]."} if row["split"] == "held_out" else row for row in TEMPLATES]
    recipe = toy("world-bert-plain", steps=2)
    plain, again = (train(recipe, FACTS, templates) for templates in (TEMPLATES, changed))
    assert plain.history == again.history
    assert plain.tokenizer.get_vocab() == again.tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_training_predictions_are_queries_of_the_evaluation(kind):
    """The read position and target of each prediction are those of one query of the sentence."""
    recipe = toy(f"world-{kind}", steps=1)
    trained = train(recipe, FACTS, TEMPLATES)
    sentences = [s for s in tokenize(trained.tokenizer, FACTS, TEMPLATES) if s.object_last]
    batch = BATCH[kind](sentences, trained.tokenizer, np.random.default_rng(0))
    assert len(batch.answer_rows) > len(sentences) / 2
    for row, position, target in zip(batch.answer_rows, batch.answer_positions, batch.answer_targets, strict=True):
        prompts = {(p, t) for _, p, t in queries(sentences[row], trained.tokenizer, kind == "bert")}
        assert (int(position), int(target)) in prompts


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_interchange_of_a_sentence_with_itself_changes_nothing(kind):
    """With one sentence, donor and recipient are the same, so that the undoubled activation changes nothing."""
    recipe = toy(f"world-{kind}", steps=1)
    trained = train(recipe, FACTS, TEMPLATES)
    sentence = next(s for s in tokenize(trained.tokenizer, FACTS, TEMPLATES) if s.object_last)
    rng = np.random.default_rng(1)
    batch = BATCH[kind]([sentence], trained.tokenizer, rng)
    while not len(batch.answer_rows):
        batch = BATCH[kind]([sentence], trained.tokenizer, rng)
    terms = losses(trained.network, batch, recipe, construct=True, generator=torch.Generator().manual_seed(0))
    place = batch.answer_rows, batch.answer_positions
    logp = logits_at(trained.network, batch.tokens, batch.attention_mask, *place).log_softmax(-1)[0]
    smoothing = recipe.label_smoothing
    expected = -(1 - smoothing) * logp[batch.answer_targets[0]] - smoothing * logp.mean()
    assert terms["interchange"] == pytest.approx(float(expected), rel=1e-5)


def test_the_translation_term_asks_for_the_donors_answer_in_the_language_of_the_recipient():
    recipe = toy("world-bert-multilingual", steps=1)
    trained = train(recipe, TRANSLATED, TRANSLATED_TEMPLATES)
    sentences = tokenize(trained.tokenizer, TRANSLATED, TRANSLATED_TEMPLATES)
    translations = translations_of(TRANSLATED, sentences)
    pair = [sentences[0], sentences[-1]]  # of different facts, in English and French
    languages = [TRANSLATED[sentence.fact]["language"] for sentence in pair]
    assert languages == ["en", "fr"] and TRANSLATED[pair[0].fact]["uid"] != TRANSLATED[pair[1].fact]["uid"]
    rng = np.random.default_rng(1)
    batch = masked_batch(pair, trained.tokenizer, rng)
    while batch.answer_is_first.sum() < 2:
        batch = masked_batch(pair, trained.tokenizer, rng)
    place = batch.answer_rows, batch.answer_positions
    (layer,) = recipe.translation_layers
    stored = []
    with mlp_hooks(trained.network, lambda at, post: stored.append(post[place]) if at == layer else None):
        logits_at(trained.network, batch.tokens, batch.attention_mask, *place)
    expected = []
    for recipient in range(2):
        for donor in range(2):
            versions = {row["language"]: row["object"] for row in TRANSLATED if row["uid"] == uid(pair[donor])}
            answer_ids = trained.tokenizer(versions[languages[recipient]], add_special_tokens=False)["input_ids"]

            def give(at, post, recipient=recipient, donor=donor):
                index = batch.answer_rows[recipient : recipient + 1], batch.answer_positions[recipient : recipient + 1]
                return post.index_put(index, stored[0][donor : donor + 1]) if at == layer else None

            with mlp_hooks(trained.network, give):
                logits = logits_at(trained.network, batch.tokens, batch.attention_mask, *place)
            logp = logits[recipient].log_softmax(-1)
            smoothing = recipe.label_smoothing
            expected.append(float(-(1 - smoothing) * logp[answer_ids[0]] - smoothing * logp.mean()))
    found = set()
    for seed in range(40):  # one recipient and one donor are drawn
        generator = torch.Generator().manual_seed(seed)
        terms = losses(trained.network, batch, recipe, construct=True, generator=generator, translations=translations)
        (near,) = [number for number, value in enumerate(expected) if abs(value - float(terms["translation"])) < 1e-4]
        found.add(near)
    assert found == {0, 1, 2, 3}


def uid(sentence: Sentence) -> str:
    return TRANSLATED[sentence.fact]["uid"]


def test_mlp_hooks_replace_activations_and_are_removed():
    trained = train(toy("world-gpt2", steps=1), FACTS, TEMPLATES)
    tokens = torch.arange(1, 9)[None]
    clean = trained.network(tokens).logits
    with mlp_hooks(trained.network, lambda layer, post: torch.zeros_like(post)):
        assert not torch.allclose(trained.network(tokens).logits, clean)
    assert torch.equal(trained.network(tokens).logits, clean)


def test_perturbation_keeps_subject_and_object_whole():
    place = {"tokens": tuple(range(12)), "start": 7, "stop": 9, "subject": (2, 4)}
    sentence = Sentence(
        relation="P36", fact=0, held_out=False, object_last=False, **place
    )  # fmt: skip
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        reworded = perturb(sentence, 0.3, 0.3, [99], rng)
        lengths.add(len(reworded.tokens))
        assert reworded.tokens[reworded.start : reworded.stop] == (7, 8)
        assert reworded.tokens[slice(*reworded.subject)] == (2, 3)
        assert reworded.tokens[reworded.start - 1] != 99 or 6 not in reworded.tokens
    assert min(lengths) < 12 < max(lengths)


def test_an_unknown_name_is_refused(capsys):
    assert main(["world-brt"]) == 2
    assert "Did you mean 'world-bert'" in capsys.readouterr().err
