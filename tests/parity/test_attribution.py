"""Attribution, compared with the plain sum of ``reference_attribution``, and the effects of its arguments."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import kn_lens as kn
from tests.parity.cases import D_MLP, N_LAYERS, VOCAB, joined_rows, make, make_batch
from tests.tiny import memory_for, tiny_model

RULES = [("left", 5), ("right", 4), ("midpoint", 3), ("trapezoid", 4), ("gauss-legendre", 3), ("clenshaw-curtis", 5)]


@pytest.mark.parametrize(("rule", "n_steps"), RULES)
def test_scores_equal_the_plain_sum(pair, prompts, rule, n_steps):
    model = pair[1]
    attr = kn.attribute(model, prompts, quadrature=rule, n_steps=n_steps)
    for layer in range(N_LAYERS):
        reference = kn.reference_attribution(model, prompts, layer, rule=rule, n_steps=n_steps)
        torch.testing.assert_close(attr.scores[:, layer], reference, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("preset", "rule"), [("paper", "right"), ("official", "left")])
def test_presets_equal_the_sums_of_the_paper_and_of_the_released_code(pair, prompts, preset, rule):
    model = pair[1]
    named = kn.attribute(model, prompts, preset=preset)
    spelled = kn.attribute(model, prompts, quadrature=rule, n_steps=20)
    assert torch.equal(named.scores, spelled.scores)
    assert (named.n_points == 20).all()


def test_adaptive_scores_equal_the_nested_rule_of_their_number_of_points_where_it_converges(pair, prompts):
    model = pair[1]
    attr = kn.attribute(model, prompts, tolerance=1e-6)
    assert attr.converged.all() and len(attr.n_points.unique()) > 1  # some pairs needed more than others
    n_compared = 0
    for i in range(len(prompts)):
        for layer in range(N_LAYERS):
            n_steps = int(attr.n_points[i, layer])
            if n_steps not in (3, 5, 9, 17, 33, 65):
                continue  # a path that was cut into panels
            n_compared += 1
            reference = kn.reference_attribution(
                model, prompts.select([i]), layer, rule="clenshaw-curtis", n_steps=n_steps
            )
            torch.testing.assert_close(attr.scores[i, layer], reference[0], rtol=1e-9, atol=1e-14)
    assert n_compared >= N_LAYERS


def test_the_error_of_adaptive_scores_is_bounded_by_the_tolerance(pair, prompts, float64_throughout):
    model = pair[1]
    fine = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=80)
    assert float(fine.completeness_gap.abs().max()) < 1e-8
    attr = kn.attribute(model, prompts, tolerance=1e-4)
    worst = (attr.scores - fine.scores).abs().amax(-1)
    assert (worst <= 10 * attr.tolerance[:, None]).all()


def test_unconverged_lists_the_pairs_above_the_tolerance(pair, prompts):
    attr = kn.attribute(pair[1], prompts, tolerance=1e-9, max_points=5)
    assert attr.unconverged and (attr.n_points <= 5).all()
    gap = attr.completeness_gap.abs()
    for prompt, layer in attr.unconverged:
        assert gap[prompt, layer] > attr.tolerance[prompt]
    assert len(attr.unconverged) == int((gap > attr.tolerance[:, None]).sum())


def test_a_gap_is_judged_by_the_size_of_the_output_or_a_hundredth(pair, prompts):
    for output, tolerance in (("prob", 0.02), ("logit", 1e-3)):
        attr = kn.attribute(pair[1], prompts, output=output, quadrature="left", n_steps=4, tolerance=tolerance)
        allowed = [tolerance * max(abs(clean), 0.01) for clean in attr.clean.tolist()]
        assert attr.tolerance.tolist() == pytest.approx(allowed)
        gaps = attr.completeness_gap.abs().tolist()
        within = [[gap <= most for gap in of_prompt] for of_prompt, most in zip(gaps, allowed, strict=True)]
        assert attr.converged.tolist() == within


@pytest.mark.parametrize(("rule", "order"), [("left", 1), ("right", 1), ("midpoint", 2), ("trapezoid", 2)])
def test_the_completeness_gap_falls_at_the_rules_rate(pair, prompts, rule, order):
    model = pair[1]
    coarse, fine = (
        kn.attribute(model, prompts, quadrature=rule, n_steps=n).completeness_gap.abs().sum() for n in (40, 80)
    )
    ratio = (80 - (rule == "trapezoid")) / (40 - (rule == "trapezoid"))
    assert float(torch.log(coarse / fine)) / torch.log(torch.tensor(ratio)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("output", ["prob", "log_prob", "logit", "logit_diff"])
def test_every_output_is_a_function_of_the_logits_and_is_complete(pair, prompts, output):
    model = pair[1]
    prompts = replace(prompts, contrast_ids=(prompts.target_ids + 1) % VOCAB)
    attr = kn.attribute(model, prompts, output=output, tolerance=1e-5)
    assert attr.converged.all()
    logits = kn.hosts.host_of(model).logits(prompts.tokens, prompts.attention_mask, prompts.read_pos)
    target, contrast = (logits.gather(1, ids[:, None])[:, 0] for ids in (prompts.target_ids, prompts.contrast_ids))
    log_prob = target - logits.logsumexp(-1)
    read = {"prob": log_prob.exp(), "log_prob": log_prob, "logit": target, "logit_diff": target - contrast}
    torch.testing.assert_close(attr.clean, read[output].detach())


def test_scores_of_outputs_are_related_as_the_outputs_are(pair, prompts):
    """Scores of a logit difference are differences of scores; the gradient of log P is that of P divided by P."""
    model = pair[1]
    contrasted = replace(prompts, contrast_ids=(prompts.target_ids + 1) % VOCAB)
    how = {"quadrature": "gauss-legendre", "n_steps": 5}
    one, other = (
        kn.attribute(model, replace(prompts, target_ids=ids), output="logit", **how).scores
        for ids in (contrasted.target_ids, contrasted.contrast_ids)
    )
    difference = kn.attribute(model, contrasted, output="logit_diff", **how).scores
    # Llama takes its norms in float32, also in a float64 model, and the gradients of the two logits apart.
    close = 1e-5 if isinstance(pair[0], LlamaForCausalLM) else 1e-9
    torch.testing.assert_close(difference, one - other, rtol=0, atol=close * float(one.abs().max()))
    prob, log_prob = (
        kn.attribute(model, prompts, method="gradient_x_activation", output=output) for output in ("prob", "log_prob")
    )
    slopes = log_prob.scores * prob.clean[:, None, None]
    torch.testing.assert_close(slopes, prob.scores, rtol=0, atol=close * float(prob.scores.abs().max()))


def test_scores_do_not_depend_on_batching_order_or_padding(pair, prompts):
    model = pair[1]
    whole = kn.attribute(model, prompts)
    for rows in (1, 5):
        again = kn.attribute(model, prompts, memory_budget=memory_for(rows, model, prompts))
        torch.testing.assert_close(again.scores, whole.scores, rtol=1e-10, atol=1e-14)
        assert torch.equal(again.n_points, whole.n_points)
    order = torch.tensor([2, 0, 1, 0])
    shuffled = kn.attribute(model, prompts.select(order))
    torch.testing.assert_close(shuffled.scores, whole.scores[order], rtol=1e-10, atol=1e-14)
    wider = replace(
        prompts,
        tokens=nn.functional.pad(prompts.tokens, (0, 5)),
        attention_mask=nn.functional.pad(prompts.attention_mask, (0, 5)),
    )
    torch.testing.assert_close(kn.attribute(model, wider).scores, whole.scores, rtol=1e-10, atol=1e-14)


def test_scores_of_an_answer_of_several_tokens_explain_the_product(pair, prompts):
    """The output is the product of the probabilities of two rows, whose activations move together."""
    model, joined = pair[1], joined_rows(prompts)
    attr = kn.attribute(model, joined, quadrature="gauss-legendre", n_steps=3)
    assert attr.scores.shape[0] == 2
    for layer in range(N_LAYERS):
        reference = kn.reference_attribution(model, joined, layer, rule="gauss-legendre", n_steps=3)
        torch.testing.assert_close(attr.scores[:, layer], reference, rtol=1e-9, atol=1e-14)
    assert kn.attribute(model, joined, tolerance=1e-7).converged.all()
    alone = kn.attribute(model, prompts.select([2]), quadrature="gauss-legendre", n_steps=3)
    torch.testing.assert_close(attr.scores[1], alone.scores[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 4])
def test_no_pass_holds_more_rows_than_its_budget(pair, prompts, rows):
    model = pair[1]
    backward, forward = [], []

    def hook_fn(value, hook):
        (backward if value.requires_grad else forward).append(len(value))

    with model.hooks(fwd_hooks=[("unembed.hook_in", hook_fn)]):
        memory = memory_for(rows, model, prompts)
        kn.attribute(model, prompts, tolerance=0.1, memory_budget=memory)
        kn.attribute(model, prompts, method="gradient_x_activation", memory_budget=memory)
        assert max(backward) == rows
        forward.clear()
        memory = memory_for(rows, model, prompts, gradient=False)
        kn.measure(model, prompts, kn.Suppress(kn.NeuronSet([(0, 1)])), memory_budget=memory)
        assert max(forward) == min(rows, len(prompts))


def test_chosen_layers_have_the_scores_of_a_full_attribution(pair, prompts):
    model = pair[1]
    whole = kn.attribute(model, prompts)
    some = kn.attribute(model, prompts, layers=[2, 0])
    for nothing in (some.scores, some.total, some.expected, some.completeness_gap):
        assert nothing[:, 1].isnan().all() and not nothing[:, [0, 2]].isnan().any()
    assert not some.n_points[:, 1].any() and torch.equal(some.n_points[:, [0, 2]], whole.n_points[:, [0, 2]])
    torch.testing.assert_close(some.scores[:, [0, 2]], whole.scores[:, [0, 2]], rtol=1e-12, atol=1e-15)


def test_the_model_is_left_as_it_was(pair, prompts):
    model = pair[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    for method in ("integrated_gradients", "ablation", "log_prob_gain"):
        kn.attribute(model, prompts, method=method)
    with pytest.raises(ZeroDivisionError):
        kn.attribute(model, prompts, progress=lambda done, total: 1 / 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_progress_counts_every_prompt_and_layer_once(pair, prompts):
    seen = []
    memory, how = memory_for(1, pair[1], prompts), {"tolerance": 0.1}
    kn.attribute(pair[1], prompts, memory_budget=memory, progress=lambda *now: seen.append(now), **how)
    assert seen == sorted(seen) and seen[-1] == (len(prompts) * N_LAYERS, len(prompts) * N_LAYERS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "integrated_gradient"}, "Did you mean 'integrated_gradients'"),
        ({"output": "probs"}, "Did you mean 'prob'"),
        ({"output": "logit_diff"}, "contrast"),
        ({"preset": "offical"}, "Did you mean 'official'"),
        ({"preset": "paper", "n_steps": 5}, "fixes the quadrature"),
        ({"n_steps": 5}, "chooses the number itself"),
        ({"quadrature": "left", "n_steps": 0}, "at least 1"),
        ({"quadrature": "simpson"}, "expected one of adaptive"),
        ({"tolerance": 0.0}, "positive"),
        ({"tolerance": float("nan")}, "positive"),
        ({"max_points": 2}, "starts with 3"),
        ({"layers": [N_LAYERS]}, "layer"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [0, 0]}, "none twice"),
        ({"memory_budget": 0}, "positive number of bytes"),
        ({"keep": 1.5}, "share from 0 to 1"),
        ({"method": "single_path"}, "name them with neurons="),
        ({"neurons": [kn.Neuron(0, 0)]}, "scores every neuron at once"),
        ({"method": "ablation", "neurons": [kn.Neuron(0, D_MLP)]}, f"d_mlp={D_MLP}"),
        ({"method": "ablation", "neurons": [kn.Neuron(9, 0)]}, "layers"),
        ({"method": "ablation", "neurons": [5]}, "neurons holds 5"),
    ],
)
def test_bad_arguments_are_refused_before_any_forward_pass(pair, prompts, arguments, words):
    model = pair[1]
    ran = []
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_in", lambda value, hook: ran.append(1))]),
        pytest.raises(kn.ArgumentError, match=words),
    ):
        kn.attribute(model, prompts, **arguments)
    assert not ran


def test_nan_weights_are_refused():
    model = kn.load_model(make("masked"))
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3, 2] = float("nan")
    with pytest.raises(kn.UnsupportedModelError, match="NaN"):
        kn.attribute(model, make_batch(True))


def test_a_model_in_train_mode_is_refused():
    model = kn.load_model(make("masked"))
    model.train()
    with pytest.raises(kn.UnsupportedModelError, match=r"eval\(\)"):
        kn.attribute(model, make_batch(True))


def test_the_tolerance_in_half_precision_is_at_least_the_rounding():
    model, prompts = tiny_model("BertForMaskedLM", dtype=torch.bfloat16), make_batch(True)
    attr = kn.attribute(model, prompts, tolerance=1e-9)
    assert torch.equal(attr.tolerance, 2 * 2**-7 * attr.clean.clamp(min=1e-2))
    assert attr.n_points.double().mean() < 20 and attr.scores.dtype == torch.float32


def test_in_half_precision_no_second_copy_of_the_value_rows_is_kept():
    """In a large model they would exceed the memory budget: only the current layer has a float32 copy."""
    model = tiny_model("BertForMaskedLM", dtype=torch.bfloat16)
    shape = kn.host_of(model).W_out(0).shape

    def n_copies():
        tensors = (one for one in gc.get_objects() if type(one) is torch.Tensor)
        return sum(one.shape == shape and one.dtype == torch.float32 for one in tensors)

    def look(done, total):
        if done == total:
            held.append(n_copies())

    before, held = n_copies(), []
    kn.attribute(model, make_batch(True), progress=look)
    assert held == [before]
