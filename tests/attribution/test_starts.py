"""Paths that start elsewhere than at zero: scores, sums and tables, beside plain loops over the Hugging Face model."""

from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.quadrature import fixed_rule
from kn_lens.hosts import host_of
from tests.experts import both
from tests.oracle import at_w_out, clean_post
from tests.tiny import COUNTRIES, equal, loaded, memory_for

TEMPLATES = ("The capital of [X] is [Y].", "[X] has the capital [Y].")
FACTS = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:4]]
OTHER_RELATION = [kn.Fact(fact.object, "P1376", fact.subject, ("[X] is the capital of [Y].",)) for fact in FACTS[:2]]
GAUSS = {"quadrature": "gauss-legendre", "n_steps": 4}
NORM_AFTER_MLP = ("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM")


def prompts_of(model, facts=(*FACTS, *OTHER_RELATION)):
    return kn.make_prompts(model, list(facts))


def rows_of(prompts, prompt):
    """The rows of a prompt as (tokens without padding, moved position, read position, target)."""
    rows = []
    for row in (prompts.prompt_index == prompt).nonzero().flatten().tolist():
        tokens = prompts.tokens[row, : int(prompts.attention_mask[row].sum())]
        rows.append((tokens, int(prompts.post_pos[row]), int(prompts.read_pos[row]), int(prompts.target_ids[row])))
    return rows


def mean_of_others(hf, prompts, prompt, layer):
    """The mean over the prompts of the same relation and other subjects, each the mean over its rows."""
    fact, means = prompts.fact(prompt), []
    for other in range(len(prompts)):
        of_other = prompts.fact(other)
        if of_other.relation == fact.relation and of_other.subject != fact.subject:
            posts = [clean_post(hf, tokens, moved, layer) for tokens, moved, _, _ in rows_of(prompts, other)]
            means.append(torch.stack(posts).mean(0))
    return torch.stack(means).mean(0)


def answer_probability(hf, row, layer, post):
    """The probability of the answer, with the layer's activation at the moved position replaced."""
    tokens, moved, read_pos, target = row

    def change(activation):
        rest = torch.arange(activation.shape[1]) != moved
        return torch.where(rest[None, :, None], activation, post)

    with at_w_out(hf, layer, change):
        return hf(tokens[None]).logits[0, read_pos].softmax(-1)[target]


def loop_scores(hf, rows, starts, layer):
    """Scores, and P(w) - P(w0), of one prompt by the definition; rows move together."""
    rule = fixed_rule("gauss-legendre", 4)
    clean = [clean_post(hf, tokens, moved, layer) for tokens, moved, _, _ in rows]

    def output(posts):
        values = [answer_probability(hf, row, layer, post) for row, post in zip(rows, posts, strict=True)]
        return torch.stack(values).prod()

    scores = torch.zeros_like(clean[0])
    for node, weight in zip(rule.nodes, rule.weights, strict=True):
        points = [(start + node * (w - start)).requires_grad_() for w, start in zip(clean, starts, strict=True)]
        gradients = torch.autograd.grad(output(points), points)
        for w, start, gradient in zip(clean, starts, gradients, strict=True):
            scores += weight * (w - start) * gradient
    with torch.no_grad():
        return scores, output(clean) - output(starts)


@pytest.mark.parametrize(
    "architecture", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM"]
)
def test_scores_from_the_mean_equal_a_loop(architecture):
    model = loaded(architecture)
    hf, prompts = model.original_model, prompts_of(model)
    attr = kn.attribute(model, prompts, start="mean", **GAUSS)
    assert attr.start == "mean" and "start: mean" in repr(attr)
    for prompt, layer in ((0, 0), (3, 1), (len(prompts) - 1, 0)):
        rows = rows_of(prompts, prompt)
        mean = mean_of_others(hf, prompts, prompt, layer)
        scores, expected = loop_scores(hf, rows, [mean] * len(rows), layer)
        equal(attr.scores[prompt, layer], scores)
        equal(attr.expected[prompt, layer], expected)


def counterfactuals_of(model, shift=1):
    """Each fact's prompts with the subject of another, and their own answer."""
    facts = []
    for number, fact in enumerate(FACTS):
        other = FACTS[(number + shift) % len(FACTS)].subject
        facts.append(replace(fact, subject=other, uid=f"{fact.key} {shift}"))
    return kn.make_prompts(model, facts)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_scores_from_counterfactual_prompts_equal_a_loop_and_those_of_several_starts_their_mean(architecture):
    model = loaded(architecture)
    hf, prompts = model.original_model, prompts_of(model, FACTS)
    others = counterfactuals_of(model)
    attr = kn.attribute(model, prompts, start=others, **GAUSS)
    for prompt, layer in ((0, 0), (5, 1)):
        starts = [clean_post(hf, tokens, moved, layer) for tokens, moved, _, _ in rows_of(others, prompt)]
        scores, expected = loop_scores(hf, rows_of(prompts, prompt), starts, layer)
        equal(attr.scores[prompt, layer], scores)
        equal(attr.expected[prompt, layer], expected)

    starts = ["zero", others, counterfactuals_of(model, 2)]
    several = kn.attribute(model, prompts, start=starts, **GAUSS)
    alone = [kn.attribute(model, prompts, start=start, **GAUSS) for start in starts]
    assert several.start == "zero, counterfactual, counterfactual"
    equal(several.scores, torch.stack([one.scores for one in alone]).mean(0))
    equal(several.start_gaps, torch.stack([one.completeness_gap for one in alone], -1))
    assert torch.equal(several.n_points, sum(one.n_points for one in alone))
    assert torch.equal(several.converged, torch.stack([one.converged for one in alone]).all(0))


@pytest.mark.parametrize("method", ["gradient_x_activation", "ablation", "single_path"])
def test_other_methods_start_there_too(method):
    model = loaded("GPT2LMHeadModel")
    hf, prompts = model.original_model, prompts_of(model, FACTS)
    keywords = {} if method == "gradient_x_activation" else {"neurons": ["L1N3", "L1N7"]}
    attr = kn.attribute(model, prompts, method=method, start="mean", layers=[1], **keywords)
    prompt, layer = 4, 1
    (row,) = rows_of(prompts, prompt)
    tokens, moved, _, _ = row
    w, start = clean_post(hf, tokens, moved, layer), mean_of_others(hf, prompts, prompt, layer)
    point = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(answer_probability(hf, row, layer, point), point)
    for index in (3, 7):
        without = w.clone()
        without[index] = start[index]
        with torch.no_grad():
            lost = answer_probability(hf, row, layer, w) - answer_probability(hf, row, layer, without)
        expected = (w - start)[index] * gradient[index] if method == "gradient_x_activation" else lost
        equal(attr.scores[prompt, layer, index], expected, 1e-5 if method == "single_path" else 1e-10)


def test_zero_is_the_default_to_the_bit():
    model = loaded("BertForMaskedLM")
    prompts = prompts_of(model)
    default, zero = kn.attribute(model, prompts), kn.attribute(model, prompts, start="zero")
    assert default.start == zero.start == "zero" and torch.equal(default.scores, zero.scores)
    assert kn.attribute(model, prompts, method="activation").start == "none"


@pytest.mark.parametrize("start", ["mean", "counterfactual"])
def test_starts_do_not_depend_on_how_prompts_go_through_the_model(start):
    model = loaded("GPT2LMHeadModel")
    prompts = prompts_of(model, FACTS)
    given = counterfactuals_of(model) if start == "counterfactual" else start
    whole = kn.attribute(model, prompts, start=given)
    small = kn.attribute(model, prompts, start=given, memory_budget=memory_for(1, model, prompts))
    equal(small.scores, whole.scores)
    for numbers, part in kn.attribute_in_parts(model, prompts, start=given, together="fact"):
        equal(part.scores, whole.scores[numbers])


def test_the_mean_may_be_over_prompts_of_ones_own():
    model = loaded("GPT2LMHeadModel")
    prompts = prompts_of(model, FACTS)
    over_all = kn.attribute(model, prompts, start="mean", **GAUSS)
    first = prompts[FACTS[0]]
    alone = kn.attribute(model, first, start=kn.MeanStart(prompts), **GAUSS)
    equal(alone.scores, over_all[FACTS[0]].scores)
    with pytest.raises(kn.ArgumentError, match=r"none beside P36/Ireland/Dublin.*kn.MeanStart\(kn.make_prompts"):
        kn.attribute(model, first, start="mean")


@pytest.mark.parametrize("architecture", NORM_AFTER_MLP)
def test_families_with_a_norm_after_the_mlp_start_at_the_mean_and_converge(architecture):
    model = loaded(architecture)
    attr = kn.attribute(model, prompts_of(model))
    assert host_of(model).norm_after_mlp and attr.start == "mean"
    assert attr.unconverged == []
    one_fact = kn.attribute(model, prompts_of(model, FACTS[:1]), layers=[0])
    assert one_fact.start == "zero"


def test_at_several_positions_the_mean_is_over_tokens_of_the_same_role():
    model = loaded("GPT2LMHeadModel")
    prompts = prompts_of(model, FACTS)
    attr = kn.attribute(model, prompts, positions="all", start="mean", **GAUSS)
    at_subject = kn.attribute(model, prompts.at("subject_last"), start="mean", **GAUSS)
    equal(attr.at("subject_last").scores, at_subject.scores)
    hf, at = model.original_model, prompts.at("subject_last")
    (row,) = rows_of(at, 3)
    scores, _ = loop_scores(hf, [row], [mean_of_others(hf, at, 3, 0)], 0)
    equal(at_subject.scores[3, 0], scores)
    assert attr.start == "mean"


def test_counterfactual_prompts_are_put_at_the_same_positions():
    model = loaded("GPT2LMHeadModel")
    prompts = prompts_of(model, FACTS)
    lengths = prompts.length
    others = counterfactuals_of(model)
    same = (lengths == others.length).nonzero().flatten().tolist()
    differ = (lengths != others.length).nonzero().flatten().tolist()
    assert same
    attr = kn.attribute(model, prompts[same], positions="all", start=others[same], **GAUSS)
    column = 1
    position = attr.positions[:, column]
    alone = kn.attribute(model, prompts[same].at(position), start=others[same].at(position), **GAUSS)
    equal(attr.at(column).scores, alone.scores)
    if differ:
        with pytest.raises(kn.ArgumentError, match="their positions do not correspond"):
            kn.attribute(model, prompts, positions="all", start=others)


def test_scores_of_several_starts_come_back_from_a_file(tmp_path):
    model = loaded("BertForMaskedLM")
    prompts = prompts_of(model)
    attr = kn.attribute(model, prompts, start=["zero", "mean"], keep=0.1)
    kn.attribute_to_file(model, tmp_path / "scores.parquet", prompts, start=["zero", "mean"])
    back = kn.read_attribution(tmp_path / "scores.parquet", prompts)
    assert back.start == attr.start == "zero, mean"
    assert torch.equal(back.start_gaps, attr.start_gaps) and torch.equal(back.converged, attr.converged)
    equal(back.scores.to_dense(), attr.scores.to_dense())


def test_experts_move_between_the_start_and_the_clean_activation():
    model, _ = both("Qwen2MoeForCausalLM")
    prompts = prompts_of(model, FACTS)
    attr = kn.attribute(model, prompts, start="mean")
    assert attr.unconverged == []
    host, prompt = host_of(model), 0
    activations = kn.attribute(model, prompts, method="activation").scores.to_dense()
    others = [number for number in range(len(prompts)) if prompts.fact(number) != prompts.fact(prompt)]
    mean = activations[others].mean(0)
    for layer in range(host.n_layers):
        rows = activations[prompt, layer].nonzero().flatten().tolist()
        neurons = kn.NeuronSet(host.layout.key(layer, row) for row in rows)
        values = torch.zeros_like(activations[0])
        values[layer] = mean[layer]
        effect = kn.measure(model, prompts[[prompt]], kn.SetTo(neurons, values)).iloc[0]
        free = attr.expected[prompt, layer] + attr.routing_term[prompt, layer]
        equal(free, torch.tensor(effect["before"] - effect["after"], dtype=free.dtype), 1e-9)


@pytest.mark.parametrize(
    "start, message",
    [
        ("men", "Unknown start 'men'.*Did you mean 'mean'"),
        ([], "at least one start"),
        (0.5, "kn.MeanStart"),
    ],
)
def test_wrong_starts_are_named(start, message):
    model = loaded("BertForMaskedLM")
    with pytest.raises(kn.ArgumentError, match=message):
        kn.attribute(model, prompts_of(model), start=start)


def test_starts_that_do_not_go_with_the_prompts_are_named():
    model = loaded("BertForMaskedLM")
    prompts = prompts_of(model, FACTS)
    with pytest.raises(kn.ArgumentError, match="has 1 counterfactual prompt for 8 prompts"):
        kn.attribute(model, prompts, start=prompts[:1])
    with pytest.raises(kn.ArgumentError, match=r"activation moves no activation.*leave start out"):
        kn.attribute(model, prompts, method="activation", start="mean")


def test_tokens_without_subjects_start_at_zero_unless_the_mean_is_asked_for():
    model = loaded("Gemma2ForCausalLM")
    tokens = torch.tensor([[5, 6, 7], [5, 8, 7], [9, 6, 7]])
    prompts = kn.PromptBatch.from_tokens(tokens, read_pos=torch.tensor([2, 2, 2]), target_ids=torch.tensor([4, 5, 6]))
    assert kn.attribute(model, prompts, layers=[1]).start == "zero"
    assert kn.attribute(model, prompts, layers=[1], start="mean").start == "mean"
