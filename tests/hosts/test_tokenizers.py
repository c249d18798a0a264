"""Two tokenizers of a model: that of TransformerLens for its own functions, and the unchanged one for prompts."""

import shutil
from importlib.metadata import version

import pytest
import torch
import transformers

import kn_lens as kn
from tests.tiny import tiny_checkpoint, tiny_tokenizer

GPT2, LLAMA, BERT = "GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM"
TEXT = "The capital of Ireland is Dublin"
FACT = kn.Fact("Ireland", "P36", "Dublin", ("The capital of [X] is [Y].", "[X] has the capital [Y]."))
HAS_OLD_CLASSES = version("transformer-lens").startswith("3.")


@pytest.fixture(scope="module", params=[GPT2, LLAMA, BERT])
def checkpoint(request, tmp_path_factory):
    """A checkpoint on disk whose tokenizer adds BOS (Llama), [CLS] and [SEP] (BERT), or nothing (GPT-2)."""
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp("tokenizers") / request.param)


@pytest.fixture
def gpt2(tmp_path):
    return tiny_checkpoint(GPT2, tmp_path / "gpt2")


def booted(directory):
    """Return the model as a user of TransformerLens makes it, without kn_lens."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(directory), device="cpu", dtype=torch.float64).eval()


def prompt_ids(model, **options):
    prompts = kn.make_prompts(model, FACT, **options)
    return [ids[mask.bool()].tolist() for ids, mask in zip(prompts.tokens, prompts.attention_mask, strict=True)]


@torch.no_grad()
def test_the_functions_of_transformer_lens_on_texts_are_those_of_its_own_model(checkpoint):
    """A model that kn_lens loaded is to its user the model that TransformerLens loads itself."""
    model, own = kn.load_model(checkpoint, dtype=torch.float64, device="cpu"), booted(checkpoint)
    # TransformerLens 3 takes BERT's [CLS] for BOS in models that it boots, and not in those that it is given.
    masked = kn.host_of(model).kind == "masked"
    for prepend_bos in (None, True) if HAS_OLD_CLASSES and masked else (None, True, False):
        tokens = model.to_tokens(TEXT, prepend_bos=prepend_bos)
        assert torch.equal(tokens, own.to_tokens(TEXT, prepend_bos=prepend_bos))
    assert model.to_str_tokens(TEXT) == own.to_str_tokens(TEXT)
    assert model.to_string(model.to_tokens(TEXT)) == own.to_string(own.to_tokens(TEXT))
    logits, cache = model.run_with_cache(TEXT)
    expected, _ = own.run_with_cache(TEXT)
    torch.testing.assert_close(logits, expected)
    assert cache["blocks.1.mlp.hook_post"].shape[1] == tokens_of(model).shape[1]
    if kn.host_of(model).kind == "causal":
        texts = [one.generate(TEXT, max_new_tokens=3, do_sample=False, verbose=False) for one in (model, own)]
        assert texts[0] == texts[1]


def tokens_of(model):
    return model.to_tokens(TEXT)


def test_the_tokenizer_of_prompts_is_the_checkpoints_own_and_stays_so(checkpoint):
    model = kn.load_model(checkpoint, dtype=torch.float64, device="cpu")
    plain = transformers.AutoTokenizer.from_pretrained(checkpoint)
    own = kn.host_of(model).tokenizer
    model.to_tokens(TEXT)
    assert model.tokenizer is not own
    assert own(TEXT)["input_ids"] == plain(TEXT)["input_ids"]
    assert own.special_tokens_map == plain.special_tokens_map
    assert own.init_kwargs.get("add_bos_token") == plain.init_kwargs.get("add_bos_token")


def test_a_model_that_the_user_booted_has_the_prompts_of_the_checkpoint(checkpoint):
    expected = prompt_ids(kn.load_model(checkpoint, dtype=torch.float64, device="cpu"))
    model = booted(checkpoint)
    assert prompt_ids(model) == expected
    assert kn.host_of(model).tokenizer is kn.host_of(model).tokenizer  # read once
    prompts = kn.make_prompts(model, FACT)
    assert kn.predict(model, prompts, k=1).token.map(len).all()


@pytest.mark.skipif(not HAS_OLD_CLASSES, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hooked_transformer_that_the_user_made_has_the_prompts_of_the_checkpoint(gpt2):
    hooked = kn.load_model(gpt2, dtype=torch.float64, device="cpu", host="hooked")
    expected = prompt_ids(hooked)
    assert hooked.to_tokens(TEXT).tolist() == booted(gpt2).to_tokens(TEXT).tolist()
    assert isinstance(hooked.generate(TEXT, max_new_tokens=2, do_sample=False, verbose=False), str)

    from transformer_lens import HookedTransformer

    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    made = HookedTransformer(hooked.cfg, tokenizer=tokenizer).eval()
    assert made.to_tokens(TEXT)[0, 0] == tokenizer.bos_token_id  # TransformerLens prepends it
    assert prompt_ids(made) == expected


def test_a_checkpoint_that_is_gone_is_told_with_the_cure(gpt2):
    model = booted(gpt2)
    shutil.rmtree(gpt2)
    with pytest.raises(kn.PromptError, match=r"cannot be read again from '.*gpt2'.*prepend BOS.*Pass tokenizer="):
        kn.make_prompts(model, FACT)
    assert prompt_ids(model, tokenizer=tiny_tokenizer(GPT2))


def test_a_checkpoint_with_other_tokens_now_is_not_taken(gpt2):
    model = booted(gpt2)
    tiny_tokenizer(BERT).save_pretrained(gpt2)
    assert kn.host_of(model).tokenizer is None


@pytest.fixture
def with_bos(gpt2):
    """The tokenizer of GPT-2 as TransformerLens sets it up: it puts BOS before each text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2, add_bos_token=True)
    assert tokenizer(TEXT)["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


REFUSAL = r"puts '<\|endoftext\|>' before each text, which the checkpoint's own .* does not.*Leave tokenizer= out"


def test_a_tokenizer_that_adds_bos_where_the_checkpoints_does_not_is_refused(gpt2, with_bos):
    model = kn.load_model(gpt2, device="cpu")
    with pytest.raises(kn.ArgumentError, match=REFUSAL):
        kn.make_prompts(model, FACT, tokenizer=with_bos)
    with pytest.raises(kn.ArgumentError, match=REFUSAL):
        kn.make_prompts(booted(gpt2), FACT, tokenizer=with_bos)
    with pytest.raises(kn.ArgumentError, match=REFUSAL):
        kn.load_model(gpt2, tokenizer=with_bos)
    with pytest.raises(kn.ArgumentError, match=REFUSAL):
        kn.load_model(model, tokenizer=with_bos)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(gpt2)
    modules = [type(module) for module in hf_model.modules()]
    with pytest.raises(kn.ArgumentError, match=REFUSAL):
        kn.load_model(hf_model, tokenizer=with_bos)
    assert [type(module) for module in hf_model.modules()] == modules


def test_a_tokenizer_that_adds_bos_as_its_checkpoint_does_is_taken(tmp_path):
    llama = tiny_checkpoint(LLAMA, tmp_path / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    assert tokenizer(TEXT)["input_ids"][0] == tokenizer.bos_token_id
    model = kn.load_model(llama, tokenizer=tokenizer, device="cpu")
    assert prompt_ids(model, tokenizer=model.tokenizer) == prompt_ids(model)


def test_what_is_no_hugging_face_tokenizer_is_refused(gpt2):
    with pytest.raises(kn.ArgumentError, match="Got the text 'gpt2' as tokenizer; expected a Hugging Face tokenizer"):
        kn.load_model(gpt2, tokenizer="gpt2")
