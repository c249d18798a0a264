"""Prompts of another model: every function refuses those of another kind of model or another tokenizer."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.hosts import fingerprint
from tests.tiny import loaded, tiny_hf_model, tiny_tokenizer

BERT, GPT2, LLAMA = "BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"
TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact("Ireland", "P36", "Dublin", TEMPLATES), kn.Fact("Peru", "seat", "Lima", TEMPLATES)]
NEURONS = kn.NeuronSet([(1, 3), (2, 5)])
BY_FACT = dict.fromkeys(FACTS, NEURONS)

TAKERS = {
    "attribute": lambda model, prompts, path: kn.attribute(model, prompts),
    "attribute_to_file": lambda model, prompts, path: kn.attribute_to_file(model, path, prompts),
    "predict": lambda model, prompts, path: kn.predict(model, prompts),
    "measure": lambda model, prompts, path: kn.measure(model, prompts, []),
    "controlled_effects": lambda model, prompts, path: kn.controlled_effects(model, prompts, BY_FACT),
    "erase_effects": lambda model, prompts, path: kn.erase_effects(model, prompts, {FACTS[0]: NEURONS}),
    "update_effects": lambda model, prompts, path: kn.update_effects(
        model, {FACTS[0]: "Paris"}, BY_FACT, others=prompts
    ),
    "Suppress.hooks": lambda model, prompts, path: kn.Suppress(NEURONS).hooks(model, prompts),
    "Amplify.hooks": lambda model, prompts, path: kn.Amplify(BY_FACT).hooks(kn.host_of(model), prompts),
    "SetTo.hooks": lambda model, prompts, path: kn.SetTo(NEURONS, 0.5, position="all").hooks(model, prompts),
}


@pytest.fixture(scope="module")
def models():
    return {name: loaded(name) for name in (BERT, GPT2, LLAMA)}


@pytest.fixture(scope="module")
def prompts(models):
    return {name: kn.make_prompts(model, FACTS) for name, model in models.items()}


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS.keys())
def test_every_function_refuses_prompts_made_for_another_model(models, prompts, take, tmp_path):
    path = tmp_path / "scores.parquet"
    small = replace(prompts[LLAMA], tokens=prompts[LLAMA].tokens.clamp(max=100))  # ids that any of them has
    for batch, other, why in (
        (prompts[BERT], GPT2, "made for a masked model, and .* is a causal one"),
        (prompts[GPT2], BERT, "made for a causal model, and .* is a masked one"),
        (small, GPT2, "another tokenizer"),
        (small.select([1]), GPT2, "another tokenizer"),
    ):
        with pytest.raises(kn.ArgumentError, match=why):
            take(models[other], batch, path)
    assert not path.exists()
    take(models[LLAMA], prompts[LLAMA], path)


def test_batches_derived_from_a_batch_keep_the_model_it_was_made_for(models, prompts, tmp_path):
    batch = prompts[LLAMA]
    kn.attribute_to_file(models[LLAMA], tmp_path / "scores.parquet", batch, method="activation")
    heirs = [
        batch.select([0]),
        batch.to("cpu"),
        replace(batch, left_out={}),
        pickle.loads(pickle.dumps(batch)),
        kn.read_attribution(tmp_path / "scores.parquet", batch, only=[1]).prompts,
        kn.attribute(models[LLAMA], batch, method="activation").prompts,
    ]
    for heir in heirs:
        assert heir.made_for == batch.made_for
        heir.check_for(kn.host_of(models[LLAMA]))
        with pytest.raises(kn.ArgumentError, match="another tokenizer"):
            heir.check_for(kn.host_of(models[GPT2]))


def test_batches_from_tokens_and_from_earlier_versions_fit_any_model(models, prompts):
    own = kn.PromptBatch.from_tokens(
        torch.tensor([[5, 6, 7]]), read_pos=torch.tensor([2]), target_ids=torch.tensor([9])
    )
    earlier = pickle.loads(pickle.dumps(own))
    del earlier.__dict__["made_for"]
    for batch in (own, earlier, earlier.select([0])):
        for model in models.values():
            assert len(kn.measure(model, batch, [])) == 1


def test_prompts_made_with_the_tokenizer_argument_fit_that_model(models, prompts):
    own = tiny_tokenizer(GPT2)
    bare = kn.load_model(tiny_hf_model(LLAMA, vocab_size=len(own)))  # has no tokenizer of its own
    chosen = kn.make_prompts(bare, FACTS, tokenizer=own)
    assert len(kn.measure(bare, chosen, [])) == len(chosen)
    assert len(kn.measure(models[GPT2], chosen, [])) == len(chosen)  # whose tokenizer it is
    with pytest.raises(kn.ArgumentError, match="another tokenizer"):
        kn.measure(models[LLAMA], chosen, [])

    named = kn.load_model(tiny_hf_model(LLAMA, vocab_size=len(own)), tokenizer=tiny_tokenizer(LLAMA))
    chosen = kn.make_prompts(named, FACTS, tokenizer=own)  # the caller knows better
    assert len(kn.measure(named, chosen, [])) == len(chosen)
    # A model without a tokenizer cannot tell; its kind can.
    assert len(kn.measure(bare, prompts[LLAMA], [])) == len(prompts[LLAMA])
    with pytest.raises(kn.ArgumentError, match="masked"):
        kn.measure(bare, prompts[BERT], [])


def test_a_fingerprint_ignores_padding_settings_and_added_tokens():
    prints = {name: fingerprint(tiny_tokenizer(name)) for name in (BERT, GPT2, LLAMA, "RobertaForMaskedLM")}
    assert len(set(prints.values())) == len(prints)
    tokenizer = pickle.loads(pickle.dumps(tiny_tokenizer(BERT)))
    assert fingerprint(tokenizer) == prints[BERT]
    tokenizer("Dublin", padding="max_length", max_length=40, truncation=True)  # leaves its mark on the tokenizer
    tokenizer.add_tokens(["Ballyhaunis"])
    assert fingerprint(tokenizer) == prints[BERT]
    assert fingerprint(None) is None


def test_a_fingerprint_distinguishes_vocabularies_of_equal_size_and_casing():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def words(*names, lowercase=False):
        made = Tokenizer(models.WordLevel({"[UNK]": 0, **{name: i for i, name in enumerate(names, 1)}}, "[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        if lowercase:
            made.normalizer = normalizers.Lowercase()
        return fingerprint(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]"))

    # None of these words is in the text that is probed.
    assert words("Peru", "Lima") == words("Peru", "Lima")
    assert len({words("Peru", "Lima"), words("Lima", "Peru"), words("Peru", "Oslo")}) == 3
    assert words("capital", "Dublin") != words("capital", "Dublin", lowercase=True)


def test_a_fingerprint_is_the_same_in_every_process():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import kn_lens as kn; print(kn.host_of(kn.load_model('world-bert')).tokenizer_fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split()[-1] == kn.host_of(kn.load_model("world-bert")).tokenizer_fingerprint
