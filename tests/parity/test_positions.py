"""Attribution at other positions than the read position, against plain loops with PyTorch's hooks on transformers."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
import transformers

import kn_lens as kn
from tests.experts import both, expert_prompts
from tests.parity.cases import D_MLP, N_LAYERS, hosted, joined_rows, make_batch
from tests.tiny import equal, loaded, tiny_hf_model, tiny_model

N_STEPS = 4
LAST_MAPS = {
    "BertForMaskedLM": lambda hf_model, layer: hf_model.bert.encoder.layer[layer].output.dense,
    "GPT2LMHeadModel": lambda hf_model, layer: hf_model.transformer.h[layer].mlp.c_proj,
    "LlamaForCausalLM": lambda hf_model, layer: hf_model.model.layers[layer].mlp.down_proj,
    "Gemma2ForCausalLM": lambda hf_model, layer: hf_model.model.layers[layer].mlp.down_proj,
}
"""The last linear map of an MLP, whose input is the activations."""


@contextmanager
def before(module, function):
    """Let a function change what enters a module."""
    handle = module.register_forward_pre_hook(lambda module, args: (function(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def plain_scores(hf_model, last_map, prompts, row, position):
    """Return the scores and the output's loss of one row, by the midpoint sum of full passes over its own tokens."""
    length = int(prompts.attention_mask[row].sum())
    tokens, target = prompts.tokens[row : row + 1, :length], prompts.target_ids[row]
    seen = []

    def answer(function):
        with before(last_map, function):
            return hf_model(tokens).logits[0, prompts.read_pos[row]].softmax(-1)[target]

    with torch.no_grad():
        clean = answer(lambda value: seen.append(value[0, position].clone()) or value)
    w, mean = seen[0], torch.zeros_like(seen[0])

    def moved(post):
        return answer(lambda value: value.index_put((torch.tensor(0), torch.tensor(position)), post))

    for step in range(N_STEPS):
        post = ((step + 0.5) / N_STEPS * w).requires_grad_()
        value = moved(post)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, post, allow_unused=True, materialize_grads=True)
            mean += gradient / N_STEPS
    with torch.no_grad():
        return w * mean, clean - moved(torch.zeros_like(w))


def check_against_plain(model, hf_model, last_map, prompts):
    attr = kn.attribute(model, prompts, positions="all", quadrature="midpoint", n_steps=N_STEPS)
    n_layers = attr.pairs.total.shape[1]
    n_compared = 0
    for prompt in range(len(prompts)):
        for column, position in enumerate(attr.positions[prompt].tolist()):
            for layer in range(n_layers):
                if position < 0:
                    assert attr.scores[prompt, column, layer].isnan().all()
                    continue
                scores, lost = plain_scores(hf_model, last_map(hf_model, layer), prompts, prompt, position)
                equal(attr.scores[prompt, column, layer], scores)
                equal(attr.expected[prompt, column, layer], lost)
                n_compared += 1
    assert n_compared == int((attr.positions >= 0).sum()) * n_layers
    is_moved = (attr.positions >= 0) & (attr.positions != prompts.read_pos[:, None])
    assert is_moved.any() and (attr.scores[:, :, -1][is_moved] == 0).all()
    assert (attr.expected[:, :, -1][is_moved] == 0).all() and (attr.scores[:, :, 0][is_moved] != 0).any()


@pytest.mark.parametrize("architecture", LAST_MAPS)
def test_scores_at_every_position_equal_a_plain_loop(architecture):
    hf_model = tiny_hf_model(architecture)
    hf_model.set_attn_implementation("eager")
    prompts = make_batch("Masked" in architecture, lengths=(6, 4), seed=3)
    check_against_plain(loaded(architecture), hf_model, LAST_MAPS[architecture], prompts)


def test_scores_of_a_modernbert_at_every_position_equal_a_plain_loop():
    config = transformers.ModernBertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=D_MLP,
        pad_token_id=0,
        global_attn_every_n_layers=2,
        local_attention=4,
        initializer_range=0.4,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    hf_model = transformers.ModernBertForMaskedLM(config).eval().double()
    model = kn.load_model(hf_model)
    check_against_plain(
        model, hf_model, lambda hf_model, layer: hf_model.model.layers[layer].mlp.Wo, make_batch(True, lengths=(6, 6))
    )


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_the_older_classes_give_the_same_scores_at_every_position(architecture):
    pytest.importorskip("transformer_lens.HookedEncoder", reason="TransformerLens 4 has one class")
    prompts = make_batch("Masked" in architecture, lengths=(6, 4))
    hooked = kn.load_model(tiny_hf_model(architecture), host="hooked")
    expected = kn.attribute(loaded(architecture), prompts, positions="all")
    found = kn.attribute(hooked, prompts, positions="all")
    torch.testing.assert_close(found.scores, expected.scores, equal_nan=True)


@pytest.mark.parametrize(
    "architecture", ["GPTNeoXForCausalLM", "BloomForCausalLM", "OPTForCausalLM", "GPTNeoForCausalLM"]
)
@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_activation"])
def test_causal_families_equal_the_plain_sum_at_the_subject(architecture, method):
    model, prompts = loaded(architecture), make_batch(False, lengths=(7, 5, 6)).at(torch.tensor([2, 2, 5]))
    how = {"quadrature": "right", "n_steps": 1}
    attr = kn.attribute(model, prompts, method=method, **(how if method == "integrated_gradients" else {}))
    for layer in range(N_LAYERS):
        reference = kn.reference_attribution(model, prompts, layer, rule="right", n_steps=1)
        torch.testing.assert_close(attr.scores[:, layer], reference, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("kind", ["masked", "causal", "gated"])
class TestKinds:
    def test_scores_add_up_at_every_position_and_layer(self, kind):
        model, prompts = hosted(kind), make_batch(kind == "masked")
        attr = kn.attribute(model, prompts, positions="all", tolerance=1e-6)
        exists = attr.positions >= 0
        assert attr.converged.all() and exists.any(0).all() and not exists.all()
        assert (attr.completeness_gap[exists].abs() <= 1e-6 * attr.clean.clamp(min=0.01).max()).all()
        assert attr.total[~exists].isnan().all() and (attr.n_points[~exists] == 0).all()

    def test_the_read_position_has_todays_scores_to_the_bit(self, kind):
        model, prompts = hosted(kind), make_batch(kind == "masked")
        for how in ({}, {"method": "ablation"}, {"quadrature": "right", "n_steps": 3}):
            expected = kn.attribute(model, prompts, **how)
            among_all = kn.attribute(model, prompts, positions="all", **how).at("read")
            named = kn.attribute(model, prompts.at(torch.zeros_like(prompts.read_pos)), positions="read", **how)
            for attr in (among_all, named):
                assert torch.equal(attr.scores, expected.scores)
                assert torch.equal(attr.expected.nan_to_num(-1), expected.expected.nan_to_num(-1))
                assert attr.prompts.moved_pos is None

    @pytest.mark.parametrize("output", ["prob", "log_prob", "logit"])
    @pytest.mark.parametrize("method", ["ablation", "activation", "gradient_x_activation", "single_path"])
    def test_all_methods_and_outputs_are_those_of_prompts_put_there(self, kind, method, output):
        model, prompts = hosted(kind), make_batch(kind == "masked")
        how = {"method": method, "output": output}
        if method == "single_path":
            how["neurons"] = ["L0N1", "L1N3"]
        attr = kn.attribute(model, prompts, positions=torch.tensor([[1, 0], [1, -1], [0, 2]]), **how)
        assert attr.positions.tolist() == [[0, 1], [1, -1], [0, 2]]
        alone = kn.attribute(model, prompts.at(torch.tensor([0, 1, 0])), **how)
        torch.testing.assert_close(attr.at(0).scores, alone.scores, rtol=1e-9, atol=1e-14, equal_nan=True)
        if method == "ablation":  # the loss when one neuron at the position is off
            path = kn.attribute(model, alone.prompts, method="single_path", neurons=["L0N1"], output=output)
            torch.testing.assert_close(attr.at(0).scores[:, 0, 1], path.expected[:, 0], rtol=1e-9, atol=1e-14)

    def test_the_rows_of_a_long_answer_move_together(self, kind):
        model, prompts = hosted(kind), joined_rows(make_batch(kind == "masked"))
        moved = prompts.at(torch.tensor([1, 1]))
        attr = kn.attribute(model, moved, quadrature="midpoint", n_steps=3)
        for layer in range(N_LAYERS):
            reference = kn.reference_attribution(model, moved, layer, rule="midpoint", n_steps=3)
            torch.testing.assert_close(attr.scores[:, layer], reference, rtol=1e-9, atol=1e-14)

    def test_hooks_of_the_user_see_whole_passes(self, kind):
        model, prompts = hosted(kind), make_batch(kind == "masked").at(torch.tensor([1, 1, 0]))
        how = {"quadrature": "midpoint", "n_steps": 3}
        expected = kn.attribute(model, prompts, **how)
        seen = []
        model.add_hook("blocks.2.hook_in", lambda value, hook: seen.append(value.shape[1]))
        found = kn.attribute(model, prompts, **how)
        model.reset_hooks()
        assert set(seen) == {prompts.tokens.shape[1]}
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-9, atol=1e-14)

    def test_kept_scores_are_those_of_a_share_of_the_largest_at_each_position(self, kind):
        model, prompts = hosted(kind), make_batch(kind == "masked")
        whole, kept = (kn.attribute(model, prompts, positions="all", keep=keep) for keep in (None, 0.2))
        scores = whole.scores.nan_to_num(0)
        threshold = 0.2 * scores.amax((2, 3), keepdim=True)
        torch.testing.assert_close(kept.scores.to_dense(), scores.where(scores >= threshold, 0))
        assert torch.equal(torch.from_numpy(kept[1:].__array__()).nan_to_num(0), kept.scores.to_dense()[1:])


def test_experts_keep_their_routing_at_every_position():
    model, hf_model = both("OlmoeForCausalLM")
    prompts = expert_prompts(n_tokens=5, n_prompts=2)
    moved = prompts.at(torch.tensor([1, 3]))
    attr = kn.attribute(model, moved, tolerance=1e-6)
    assert attr.converged.all() and attr.scores.is_sparse
    assert (attr.expected[:, -1] == 0).all() and (attr.expected[:, 0] != 0).all()

    # With free routing: the whole loss, by silencing the MLP of the layer at the position.
    rows = torch.arange(2)
    with torch.no_grad():
        clean = hf_model(prompts.tokens).logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids]
        for layer in range(3):

            def silence(module, args, output):
                out = (output[0] if isinstance(output, tuple) else output).clone()
                out[rows, moved.post_pos] = 0
                return (out, *output[1:]) if isinstance(output, tuple) else out

            handle = hf_model.model.layers[layer].mlp.register_forward_hook(silence)
            silent = hf_model(prompts.tokens).logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids]
            handle.remove()
            equal(attr.expected[:, layer] + attr.routing_term[:, layer], clean - silent, 1e-7)


def test_log_prob_gain_has_no_other_position():
    model, prompts = loaded("GPT2LMHeadModel"), make_batch(False)
    with pytest.raises(kn.ArgumentError, match="positions='read'"):
        kn.attribute(model, prompts, positions="all", method="log_prob_gain")
    kn.attribute(model, prompts, positions="read", method="log_prob_gain", neurons=["L0N1"])


def test_sums_of_half_precision_models_converge_at_the_subject():
    model, prompts = tiny_model("LlamaForCausalLM", dtype=torch.bfloat16), make_batch(False)
    attr = kn.attribute(model, prompts.at(torch.tensor([1, 1, 1])))
    assert attr.converged.all() and attr.scores.dtype == torch.float32


@pytest.mark.parametrize("architecture", LAST_MAPS)
def test_suppression_at_a_position_equals_a_plain_loop(architecture):
    hf_model = tiny_hf_model(architecture)
    hf_model.set_attn_implementation("eager")
    prompts = make_batch("Masked" in architecture, lengths=(6, 4), seed=3).at(torch.tensor([1, 2]))
    neurons = kn.NeuronSet([(0, 3), (1, 0), (2, 7)])
    effect = kn.measure(loaded(architecture), prompts, kn.Suppress(neurons))
    for row, position in enumerate(prompts.post_pos.tolist()):
        length = int(prompts.attention_mask[row].sum())
        with ExitStack() as stack, torch.no_grad():
            for layer, index in neurons:
                place = (0, position, index)

                def off(value, place=place):
                    value = value.clone()
                    value[place] = 0
                    return value

                stack.enter_context(before(LAST_MAPS[architecture](hf_model, layer), off))
            logits = hf_model(prompts.tokens[row : row + 1, :length]).logits[0, prompts.read_pos[row]]
        after = float(logits.softmax(-1)[prompts.target_ids[row]])
        assert abs(after - effect.after[row]) < 1e-12 < abs(effect.change[row])
