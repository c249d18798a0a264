"""A small GGUF file, written as llama.cpp's converter writes one, and the plain model that it stands for."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny import tiny_hf_model, tiny_tokenizer

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, quantisation: str = "Q8_0") -> Any:
    """Write a tiny Llama with a byte-level tokenizer to ``path``, and return it with the weights as quantised.

    Needs the package ``gguf``. Matrices are quantised, norms are float32.
    """
    import gguf

    tokenizer = tiny_tokenizer("GPT2LMHeadModel")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    hf_model = tiny_hf_model("LlamaForCausalLM", torch.float32, vocab_size=len(tokenizer), **sizes)
    config = hf_model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(tokenizer))
    _add_tokenizer(writer, tokenizer)
    kind = gguf.GGMLQuantizationType[quantisation]
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            values = weight.numpy()
            if values.ndim == 2:
                raw = gguf.quants.quantize(_as_stored(name, values, config), kind)
                writer.add_tensor(_gguf_name(name), raw, raw_dtype=kind)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)))
            else:
                writer.add_tensor(_gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hf_model


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    import json

    import gguf

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    types = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token, _ in vocabulary]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.weight"
    _, _, layer, path = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[path]}.weight"


def _as_stored(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Return a matrix with the rows of queries and keys in llama.cpp's order: rotated pairs side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, n_heads in heads.items():
        if projection in name:
            halves = values.reshape(n_heads, 2, -1, values.shape[-1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return values
