"""Tiny random checkpoints of every family, with real tokenizers, made on disk and read back by the real loading code.

A checkpoint has 3 layers of width 16 and takes a few milliseconds to run. Its tokenizer is a small one of the family's
own class, trained on `TEXTS`, so that special tokens, leading spaces and word pieces are those of the family.
"""

from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from kn_lens.attribution.layer_context import budget_for
from kn_lens.hosts import host_of, load_model
from kn_lens.hosts.memory import Budget
from kn_lens.prompts.build import PromptBatch

N_LAYERS, D_MODEL, D_MLP, N_CTX = 3, 16, 24, 64
GATED = tuple(
    f"{name}ForCausalLM"
    for name in "Phi3 Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Gemma3 Olmo Olmo2 StableLm Granite".split()
)
COUNTRIES = {
    "Ireland": "Dublin",
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Norway": "Oslo",
}
TEXTS = [
    text
    for country, capital in COUNTRIES.items()
    for text in (
        f"The capital of {country} is {capital}.",
        f"{capital} is the capital of {country}.",
        f"In fact, {country} has its seat of government in {capital}",
        f"{country}'s capital city, {capital}, lies on a river.",
        f"The people of {country} speak their own language and pay with their own currency.",
    )
]
_OURS = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "intermediate_size": D_MLP}
_GPT2 = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 2, "n_inner": D_MLP, "n_positions": N_CTX}
_BERT = {**_OURS, "max_position_embeddings": N_CTX}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 8}
_T5 = {
    "d_model": D_MODEL,
    "d_kv": 8,
    "d_ff": D_MLP,
    "num_layers": 2,
    "num_decoder_layers": N_LAYERS,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_BART = {
    "d_model": D_MODEL,
    "encoder_layers": N_LAYERS,
    "decoder_layers": N_LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": D_MLP,
    "decoder_ffn_dim": D_MLP,
    "max_position_embeddings": N_CTX,
}
_CONFIG: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": _BERT,
    # RoBERTa's first position is padding_idx + 1.
    "RobertaForMaskedLM": {**_BERT, "max_position_embeddings": N_CTX + 2, "type_vocab_size": 1},
    "XLMRobertaForMaskedLM": {**_BERT, "max_position_embeddings": N_CTX + 2, "type_vocab_size": 1},
    "CamembertForMaskedLM": {**_BERT, "max_position_embeddings": N_CTX + 2, "type_vocab_size": 1},
    "DistilBertForMaskedLM": {
        "dim": D_MODEL,
        "hidden_dim": D_MLP,
        "n_layers": N_LAYERS,
        "n_heads": 2,
        "max_position_embeddings": N_CTX,
    },
    "ElectraForMaskedLM": {**_BERT, "embedding_size": 12},  # narrower than the stack, as in the small generator
    "GPT2LMHeadModel": _GPT2,
    "GPTNeoForCausalLM": {
        "hidden_size": D_MODEL,
        "num_layers": N_LAYERS,
        "num_heads": 2,
        "intermediate_size": D_MLP,
        "max_position_embeddings": N_CTX,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 4,
    },
    "GPTNeoXForCausalLM": _BERT,
    "GPTJForCausalLM": {**_GPT2, "rotary_dim": 4},
    "OPTForCausalLM": {
        "hidden_size": D_MODEL,
        "word_embed_proj_dim": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "ffn_dim": D_MLP,
        "max_position_embeddings": N_CTX,
    },
    "BloomForCausalLM": {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": 2},
    "FalconForCausalLM": {
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "ffn_hidden_size": D_MLP,
        "max_position_embeddings": N_CTX,
    },
    "MptForCausalLM": {"d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": 2, "max_seq_len": N_CTX},
    "PhiForCausalLM": _BERT,
    "Phi3ForCausalLM": {**_BERT, "num_key_value_heads": 1},
    **{f"{name}ForCausalLM": _LLAMA for name in "Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Gemma3".split()},
    "OlmoForCausalLM": _BERT,
    "Olmo2ForCausalLM": _BERT,
    "StableLmForCausalLM": {**_BERT, "num_key_value_heads": 1},
    "GraniteForCausalLM": _BERT,
    "T5ForConditionalGeneration": _T5,
    "MT5ForConditionalGeneration": _T5,
    "BartForConditionalGeneration": _BART,
    "MBartForConditionalGeneration": {**_BART, "scale_embedding": True},
    "T5GemmaForConditionalGeneration": {"encoder": _LLAMA, "decoder": _LLAMA},
}
MASKED = tuple(name for name in _CONFIG if name.endswith("ForMaskedLM"))
CAUSAL = tuple(name for name in _CONFIG if name.endswith(("ForCausalLM", "LMHeadModel")))
"""The families that every test of families runs on. The others are in ``tests/parity/test_architectures.py``."""

ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration", {}),
    "FLAN-T5": ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mT5": ("MT5ForConditionalGeneration", {}),
    "BART": ("BartForConditionalGeneration", {}),
    "mBART": ("MBartForConditionalGeneration", {}),
    "T5Gemma": ("T5GemmaForConditionalGeneration", {}),
}
"""Class and settings of each encoder-decoder. Their tests are in modules of their own."""

_TOKENIZER = {  # which kind, and the class that the family's checkpoints name
    **dict.fromkeys(CAUSAL, ("byte-bpe", "GPT2Tokenizer")),
    **dict.fromkeys(("BertForMaskedLM", "DistilBertForMaskedLM", "ElectraForMaskedLM"), ("wordpiece", "BertTokenizer")),
    "RobertaForMaskedLM": ("byte-bpe", "RobertaTokenizer"),
    "XLMRobertaForMaskedLM": ("unigram", "XLMRobertaTokenizer"),
    "CamembertForMaskedLM": ("unigram", "CamembertTokenizer"),
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM"), ("metaspace-bpe", "LlamaTokenizer")),
    **dict.fromkeys(
        ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"), ("metaspace-bpe", "GemmaTokenizer")
    ),
    **dict.fromkeys(("Qwen2ForCausalLM", "Qwen3ForCausalLM"), ("byte-bpe", "Qwen2Tokenizer")),
    **dict.fromkeys(
        ("GPTNeoXForCausalLM", "MptForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "StableLmForCausalLM"),
        ("byte-bpe", "GPTNeoXTokenizer"),
    ),
    "T5ForConditionalGeneration": ("unigram", "T5Tokenizer"),
    "MT5ForConditionalGeneration": ("unigram", "T5Tokenizer"),
    "BartForConditionalGeneration": ("byte-bpe", "BartTokenizer"),
    "MBartForConditionalGeneration": ("unigram", "MBartTokenizer"),
    "T5GemmaForConditionalGeneration": ("metaspace-bpe", "GemmaTokenizer"),
}
_SPECIAL = {
    "BertTokenizer": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "RobertaTokenizer": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "XLMRobertaTokenizer": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "CamembertTokenizer": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "GPT2Tokenizer": ["<|endoftext|>"],
    "Qwen2Tokenizer": ["<|endoftext|>"],
    "GPTNeoXTokenizer": ["<|endoftext|>", "<|padding|>"],
    "LlamaTokenizer": ["<unk>", "<s>", "</s>"],
    "GemmaTokenizer": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
    "T5Tokenizer": ["<pad>", "</s>", "<unk>"],
    "BartTokenizer": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "MBartTokenizer": ["<s>", "<pad>", "</s>", "<unk>"],
}


def tiny_checkpoint(
    architecture: str, directory: Path | str, dtype: torch.dtype = torch.float64, seed: int = 0, **config: Any
) -> Path:
    """Write a random checkpoint of the class, with its tokenizer, to ``directory``; ``config`` overrides settings."""
    hf_model = tiny_hf_model(architecture, dtype, seed, **config)
    hf_model.save_pretrained(directory)
    tiny_tokenizer(architecture).save_pretrained(directory)
    return Path(directory)


def tiny_model(architecture: str = "BertForMaskedLM", dtype: torch.dtype = torch.float64, seed: int = 0, **config: Any):
    """Return a random model of the class that went to disk and came back through `load_model`."""
    with TemporaryDirectory() as directory:
        tiny_checkpoint(architecture, directory, dtype, seed, **config)
        # Without the check: tests/hosts/test_logit_check.py checks all of these.
        return load_model(directory, dtype=dtype, device="cpu", check=False)


@cache
def loaded(architecture: str = "BertForMaskedLM"):
    """Return `tiny_model`, the same one at every call: for tests that leave it as it was."""
    model, tokens = tiny_model(architecture), torch.tensor([[8, 9, 10]])
    with torch.no_grad():  # TransformerLens readies some modules when they first run
        host_of(model).logits(tokens, torch.ones_like(tokens))
    return model


def tiny_hf_model(architecture: str, dtype: torch.dtype = torch.float64, seed: int = 0, **config: Any) -> Any:
    """Return the Hugging Face model itself, in evaluation mode.

    Weights are drawn wider than a fresh model's, so that attention, MLPs and logits differ clearly between inputs;
    biases and norms too, so that none is at a value where forgetting it would go unseen.
    """
    import transformers

    cls = getattr(transformers, architecture)
    vocabulary = {"vocab_size": len(tiny_tokenizer(architecture)), **_special_ids(architecture)}
    settings = {**vocabulary, **_CONFIG[architecture], **config}
    for part in ("encoder", "decoder"):
        if part in settings:
            settings[part] = {**vocabulary, **_CONFIG[architecture][part], **settings[part]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf_model = cls(cls.config_class(**settings)).to(dtype).eval()
        for weight in hf_model.parameters():
            noise = torch.randn_like(weight)
            weight.data = 0.3 * noise if weight.ndim > 1 else weight.data + 0.1 * noise
        if hasattr(hf_model, "final_logits_bias"):
            hf_model.final_logits_bias.normal_()
    return hf_model


@lru_cache
def tiny_tokenizer(architecture: str) -> Any:
    """Return the small tokenizer of the family."""
    import transformers

    kind, cls = _TOKENIZER[architecture]
    vocab, merges = _trained(kind, tuple(_SPECIAL[cls]))
    options: dict[str, Any] = {"vocab": vocab} if merges is None else {"vocab": vocab, "merges": merges}
    if cls == "BertTokenizer":
        options["do_lower_case"] = False
    if kind == "metaspace-bpe":
        options["add_bos_token"] = True
    if cls == "MBartTokenizer":
        options["src_lang"] = "en_XX"
    return getattr(transformers, cls)(**options)


def _special_ids(architecture: str) -> dict[str, int | None]:
    tokenizer = tiny_tokenizer(architecture)
    return {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


@lru_cache
def _trained(kind: str, special: tuple[str, ...]) -> tuple[Any, list | None]:
    """Train a vocabulary on `TEXTS`; return what the tokenizer classes take: vocabulary and merges."""
    import json

    options = {"special_tokens": list(special), "show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, **options)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **options)
    elif kind == "byte-bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, **options)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        # Merges never cross punctuation, as in corpora large enough to have seen each word without it.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        trainer = trainers.BpeTrainer(vocab_size=250, **options)
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    if kind == "unigram":
        return [tuple(piece) for piece in model["vocab"]], None
    merges = model.get("merges")
    return model["vocab"], None if merges is None else [tuple(merge) for merge in merges]


def memory_for(rows: int, model: Any, prompts: PromptBatch, *, gradient: bool = True) -> float:
    """Return the memory budget under which a pass holds so many of the longest rows."""
    host = host_of(model)
    budget = budget_for(host, prompts, 1.0) if gradient else Budget.of(host, 1.0)
    return 2.01 * rows * budget._pass_bytes(int(prompts.length.max()))


def equal(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    """Fail where two tensors differ by more than float64 rounds, or than the tolerance."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
