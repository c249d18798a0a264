"""Every promised family as a host, read from disk by the real loading code, against Hugging Face.

There the attention is of the kind that a checkpoint has by default: a fused kernel (sdpa), or what some families have
alone (eager: GPT-Neo, GPT-J, Bloom, MPT, Gemma 2).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from kn_lens.errors import ArgumentError, HookError
from kn_lens.hosts import FAMILIES, Host, host_of, load_model
from kn_lens.hosts.partial_forward import Replacement, run_clean
from tests.tiny import CAUSAL, COUNTRIES, MASKED, N_CTX, N_LAYERS, equal, tiny_checkpoint, tiny_model

# Settings of a family under which its blocks compute something else; all tests run with these.
VARIANTS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {"hidden_act": "relu", "tie_word_embeddings": False},
    "GPT2LMHeadModel": {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
    "GPTNeoXForCausalLM": {"use_parallel_residual": False},
    "OPTForCausalLM": {"do_layer_norm_before": False, "word_embed_proj_dim": 12},
    "FalconForCausalLM": {"parallel_attn": False, "bias": True, "multi_query": False},
    "BloomForCausalLM": {"apply_residual_connection_post_layernorm": True},
    "LlamaForCausalLM": {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
    "MistralForCausalLM": {"sliding_window": 5},
    "Gemma2ForCausalLM": {"sliding_window": 5, "final_logit_softcapping": 5.0},
    "Gemma3ForCausalLM": {"sliding_window": 5},
    "OlmoForCausalLM": {"clip_qkv": 0.5},
    "StableLmForCausalLM": {"use_parallel_residual": True, "qk_layernorm": True},
    "GraniteForCausalLM": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
}
CASES = [(architecture, {}) for architecture in MASKED + CAUSAL] + list(VARIANTS.items())

_SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
_MIXED = {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "factor": 4.0, "rope_theta": 100.0, **settings}}


# More of them, one by one: the logits of each are those of Hugging Face.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "BertForMaskedLM": [{"is_decoder": True}],
    "RobertaForMaskedLM": [{"type_vocab_size": 2}, {"tie_word_embeddings": False}, {"pad_token_id": 0}],
    "DistilBertForMaskedLM": [{"sinusoidal_pos_embds": True}, {"tie_word_embeddings": False}],
    "ElectraForMaskedLM": [{"embedding_size": 16}, {"tie_word_embeddings": False}],
    "GPT2LMHeadModel": [{"reorder_and_upcast_attn": True}, {"tie_word_embeddings": False}],
    "GPTNeoForCausalLM": [{"attention_types": [[["local"], 3]], "window_size": 5}],
    "GPTNeoXForCausalLM": [{"rotary_pct": 0.5}, {"rotary_pct": 1.0}, {"tie_word_embeddings": True}],
    "GPTJForCausalLM": [{"rotary_dim": 8}, {"tie_word_embeddings": True}],
    "OPTForCausalLM": [
        {"word_embed_proj_dim": 12},
        {"enable_bias": False},
        {"layer_norm_elementwise_affine": False},
        {"tie_word_embeddings": False},
    ],
    "BloomForCausalLM": [{"hidden_size": 24, "n_head": 3}, {"tie_word_embeddings": False}],
    "FalconForCausalLM": [{"multi_query": False}, {"parallel_attn": False}, {"tie_word_embeddings": False}],
    "MptForCausalLM": [
        {"d_model": 24, "n_heads": 3},
        {"expansion_ratio": 2},
        *({"attn_config": {key: value}} for key, value in (("clip_qkv", 0.5), ("softmax_scale", 0.3))),
        {"attn_config": {"alibi_bias_max": 4}},
    ],
    "PhiForCausalLM": [{"partial_rotary_factor": 1.0}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}],
    "Phi3ForCausalLM": [{"sliding_window": 5}, {"partial_rotary_factor": 0.5}, {"tie_word_embeddings": True}],
    "LlamaForCausalLM": [
        _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
        _rope("linear"),
        _rope("yarn", original_max_position_embeddings=16),
        {"head_dim": 6},
        {"num_key_value_heads": 2},
    ],
    "Qwen2ForCausalLM": [_SLIDING, {"tie_word_embeddings": True}],
    "Qwen3ForCausalLM": [_SLIDING, {"attention_bias": True}, {"head_dim": 6}],
    "GemmaForCausalLM": [{"attention_bias": True}, {"tie_word_embeddings": False}],
    "Gemma2ForCausalLM": [
        {"attn_logit_softcapping": 1.0},
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"query_pre_attn_scalar": 3},
        _MIXED,
    ],
    "Gemma3ForCausalLM": [{"final_logit_softcapping": 2.0}, {"query_pre_attn_scalar": 3}, _MIXED],
    "OlmoForCausalLM": [{"attention_bias": True}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}],
    "Olmo2ForCausalLM": [{"attention_bias": True}, {"num_key_value_heads": 1}],
    "StableLmForCausalLM": [
        {"use_qkv_bias": True},
        {"qk_layernorm": True},
        {"partial_rotary_factor": 0.5, "num_key_value_heads": 2},
        {"tie_word_embeddings": True},
    ],
    "GraniteForCausalLM": [
        {"attention_multiplier": 0.3, "attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False, "num_key_value_heads": 1},
    ],
}


@dataclass(frozen=True)
class Case:
    host: Host
    reference: Any  # the Hugging Face model, read from the same directory, with its default kind of attention
    directory: Path
    tokens: Tensor
    mask: Tensor
    read_pos: Tensor

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.tokens))

    def kept(self, *names: str) -> list[Tensor]:
        """The activations at the named hooks in one pass."""
        found: dict[str, Tensor] = {}

        def keep(name: str):
            return lambda activation, hook: found.__setitem__(name, activation.detach().clone())

        self.host.logits(self.tokens, self.mask, fwd_hooks=[(name, keep(name)) for name in names])
        return [found[name] for name in names]

    def expected(self) -> list[Tensor]:
        """The logits that Hugging Face gives for each prompt alone."""
        lengths = self.mask.sum(-1).tolist()
        return [self.reference(self.tokens[[row], :n]).logits[0] for row, n in enumerate(lengths)]


def case_of(architecture: str, directory: Path, config: dict[str, Any]) -> Case:
    """Prompts are longer than the sliding windows here, and so is the padding of others."""
    tiny_checkpoint(architecture, directory, **config)
    reference = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float64)
    host = host_of(load_model(directory, dtype=torch.float64, device="cpu"))
    n_tokens = torch.tensor([14, 5, 6, 9])
    tokens = torch.randint(8, host.d_vocab, (4, 14), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(14) < n_tokens[:, None]).long()
    pad = reference.config.pad_token_id
    tokens[mask == 0] = 0 if pad is None else pad
    return Case(host, reference.eval(), directory, tokens, mask, n_tokens - 1)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0] + ("*" if case[1] else ""))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture, config = request.param
    return case_of(architecture, tmp_path_factory.mktemp(architecture), config)


# --- every family ----------------------------------------------------------------------------------------


@torch.no_grad()
def assert_equal_to_hugging_face(case: Case, tolerance: float) -> None:
    """All logits of a full pass, and those at the last token of passes that start from what is kept of another."""
    every = case.host.logits(case.tokens, case.mask)
    assert every.shape == (4, 14, case.host.d_vocab)
    at_last = case.host.logits(case.tokens, case.mask, case.read_pos)
    state = run_clean(case.host, case.tokens, case.mask, case.read_pos, [0])
    resumed = state.logits_with_post([Replacement(layer=0, rows=case.rows, post=state.post[0])])
    for row, expected in enumerate(case.expected()):
        equal(every[row, : len(expected)], expected, tolerance)
        for found in (at_last, state.logits, resumed):
            equal(found[row], expected[-1], tolerance)


def test_logits_are_those_of_hugging_face(case: Case, float64_throughout: None) -> None:
    assert_equal_to_hugging_face(case, 1e-10)


def test_logits_are_those_of_hugging_face_as_it_rounds(case: Case) -> None:
    assert_equal_to_hugging_face(case, 1e-5)


@pytest.mark.parametrize(
    ("architecture", "setting"),
    [(name, setting) for name, settings in SETTINGS.items() for setting in settings],
    ids=str,
)
def test_logits_are_those_of_hugging_face_under_settings(
    architecture: str, setting: dict[str, Any], tmp_path: Path, float64_throughout: None
) -> None:
    assert_equal_to_hugging_face(case_of(architecture, tmp_path, setting), 1e-10)


@torch.no_grad()
def test_padding_changes_nothing(case: Case, float64_throughout: None) -> None:
    logits = case.host.logits(case.tokens, case.mask, case.read_pos)
    for row, n in enumerate((case.read_pos + 1).tolist()):
        alone = case.host.logits(case.tokens[[row], :n], case.mask[[row], :n], case.read_pos[[row]])
        equal(alone[0], logits[row])


@torch.no_grad()
def test_hook_post_is_the_input_of_W_out(case: Case) -> None:
    for layer, block in enumerate(case.host.model.blocks):
        post, mlp_out = case.kept(case.host.hook_post(layer), case.host.hook_mlp_out(layer))
        assert post.shape == (4, 14, case.host.d_mlp)
        assert case.host.W_out(layer).shape == (case.host.d_mlp, case.host.d_model)
        bias = getattr(block.mlp.out.original_component, "bias", None)
        equal(post @ case.host.W_out(layer) + (0 if bias is None else bias), mlp_out)


def test_replaced_activations_move_the_logits_as_their_gradient_says(case: Case, float64_throughout: None) -> None:
    for layer in range(N_LAYERS):
        (post,) = case.kept(case.host.hook_post(layer))

        def output(at: Tensor, layer: int = layer) -> Tensor:
            hooks = [(case.host.hook_post(layer), lambda activation, hook: at)]
            return case.host.logits(case.tokens, case.mask, case.read_pos, hooks).log_softmax(-1)[:, 8].sum()

        direction = torch.randn(post.shape, generator=torch.Generator().manual_seed(layer), dtype=post.dtype)
        point = post.clone().requires_grad_()
        slope = (torch.autograd.grad(output(point), point)[0] * direction).sum()
        with torch.no_grad():
            step = 1e-6
            measured = (output(post + step * direction) - output(post - step * direction)) / (2 * step)
        assert abs(slope) > 1e-6
        equal(slope, measured, 1e-4)


@torch.no_grad()
def test_W_out_is_live_and_writing_back_restores_every_bit(case: Case) -> None:
    before = case.host.logits(case.tokens, case.mask)
    rows, saved = case.host.W_out(1), case.host.W_out(1).clone()
    rows[3, 0] += 1.0  # one column: LayerNorm would not see a constant
    changed = case.host.logits(case.tokens, case.mask)
    rows.copy_(saved)
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(case.host.logits(case.tokens, case.mask), before)


@torch.no_grad()
def test_resuming_from_any_layer_is_the_full_run_to_the_bit(case: Case) -> None:
    full = case.host.logits(case.tokens, case.mask, case.read_pos)
    for layer in range(1, N_LAYERS + 1):
        (resid,) = case.kept(case.host.resid_post(layer - 1))
        if layer < N_LAYERS:
            assert torch.equal(case.kept(case.host.resid_pre(layer))[0], resid)
        with case.host.skip_blocks_below(layer, resid):
            assert torch.equal(case.host.logits(case.tokens, case.mask, case.read_pos), full)
    assert torch.equal(case.host.logits(case.tokens, case.mask, case.read_pos), full)


def test_resuming_keeps_the_gradient(case: Case) -> None:
    layer = N_LAYERS - 1
    (resid,) = case.kept(case.host.resid_pre(layer))
    gradients = []
    for resume in (False, True):
        point = resid.clone().requires_grad_()
        if resume:
            with case.host.skip_blocks_below(layer, point):
                logits = case.host.logits(case.tokens, case.mask, case.read_pos)
        else:
            hooks = [(case.host.resid_pre(layer), lambda activation, hook, point=point: point)]
            logits = case.host.logits(case.tokens, case.mask, case.read_pos, hooks)
        gradients.append(torch.autograd.grad(logits.log_softmax(-1)[:, 8].sum(), point)[0])
    assert gradients[0].abs().max() > 1e-6
    assert torch.equal(*gradients)


@torch.no_grad()
def test_unembed_reads_the_last_residual_stream_as_the_head_does(case: Case) -> None:
    (resid,) = case.kept(case.host.resid_post(N_LAYERS - 1))
    equal(case.host.unembed(resid[case.rows, case.read_pos]), case.host.logits(case.tokens, case.mask, case.read_pos))


def test_host_says_what_the_checkpoint_is(case: Case) -> None:
    host, config = case.host, case.reference.config
    family = next(family for family in FAMILIES if family.architecture == host.architecture)
    assert family.model_type == config.model_type
    assert family.kind == host.kind == ("masked" if host.architecture.endswith("ForMaskedLM") else "causal")
    assert family.norm_after_mlp == host.norm_after_mlp
    assert family.gated == ("gate" in host.model.blocks[0].mlp.submodules)
    assert host.n_layers == config.num_hidden_layers == N_LAYERS
    assert host.d_model == config.hidden_size
    assert host.d_vocab == config.vocab_size
    assert host.n_ctx == (None if config.model_type == "bloom" else N_CTX)
    assert (host.dtype, host.device, host.raw) == (torch.float64, torch.device("cpu"), True)
    assert host.W_E.data_ptr() == host.model.original_model.get_input_embeddings().weight.data_ptr()
    assert not any(weight.requires_grad for weight in host.model.original_model.parameters())


@torch.no_grad()
def test_the_longest_prompt_fits(case: Case) -> None:
    n = case.host.n_ctx or N_CTX
    tokens = torch.full((1, n), 9)
    assert torch.isfinite(case.host.logits(tokens, torch.ones_like(tokens))).all()


def test_the_tokenizer_is_the_checkpoints_own(case: Case) -> None:
    own = transformers.AutoTokenizer.from_pretrained(case.directory)
    assert type(case.host.tokenizer) is type(own)
    assert case.host.tokenizer.special_tokens_map == own.special_tokens_map
    assert case.host.tokenizer.padding_side == own.padding_side
    for country, capital in COUNTRIES.items():
        text = f"The capital of {country} is {capital}."
        assert case.host.tokenizer(text).input_ids == own(text).input_ids


# --- one family ------------------------------------------------------------------------------------------


def test_processed_weights_are_told_from_raw_ones() -> None:
    model = tiny_model("GPT2LMHeadModel")
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    assert host_of(model).raw
    model.process_weights()
    assert not host_of(model).raw


@pytest.mark.parametrize("layer", [-1, N_LAYERS, True])
def test_layers_out_of_range(layer: int) -> None:
    host = host_of(tiny_model("BertForMaskedLM"))
    for method in (host.hook_post, host.hook_mlp_out, host.resid_pre, host.resid_post, host.W_out):
        with pytest.raises(ArgumentError, match=rf"no layer {layer!r}; expected 0 to 2"):
            method(layer)


def test_unknown_hooks_are_refused_before_the_model_runs() -> None:
    host = host_of(tiny_model("BertForMaskedLM"))
    tokens = torch.arange(8, 12)[None]
    ran: list[str] = []
    hooks = [
        (name, lambda activation, hook: ran.append("yes")) for name in (host.hook_post(0), "blocks.0.mlp.hook_pst")
    ]
    with pytest.raises(HookError, match=r"no hook 'blocks.0.mlp.hook_pst'.*Did you mean 'blocks\.0\.mlp\.hook_post'\?"):
        host.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks)
    with pytest.raises(HookError, match="not filters"):
        host.check_hooks([lambda name: True])
    assert not ran


def test_resuming_leaves_no_trace_after_an_error() -> None:
    host = host_of(tiny_model("GPT2LMHeadModel"))
    with pytest.raises(ZeroDivisionError), host.skip_blocks_below(2, torch.zeros(1, 4, host.d_model)):
        raise ZeroDivisionError
    assert not any("forward" in vars(block) for block in host.model.blocks)
    for layer in (-1, N_LAYERS + 1, True):
        with (
            pytest.raises(ArgumentError, match="Cannot start a pass"),
            host.skip_blocks_below(layer, torch.zeros(1, 4, host.d_model)),
        ):
            pass


def test_whether_a_norm_follows_is_asked_without_the_hooks_of_the_user():
    model, seen = tiny_model("Gemma2ForCausalLM"), []
    model.blocks[1].hook_mlp_out.add_hook(lambda value, hook: seen.append(value))
    handle = model.original_model.model.layers[0].register_forward_hook(lambda *args: seen.append(args))
    hooks = [list(module._forward_hooks.items()) for module in model.modules()]
    assert host_of(model).norm_after_mlp
    assert not seen and hooks == [list(module._forward_hooks.items()) for module in model.modules()]
    handle.remove()
