"""NaN and infinite outputs: they are refused or reported, and never look like neurons without effect."""

from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from tests.tiny import loaded, tiny_hf_model

TOKENS = torch.tensor([[8, 9, 10, 11], [9, 8, 11, 10]])


def prompts(target=12):
    return kn.PromptBatch.from_tokens(TOKENS, read_pos=torch.tensor([3, 3]), target_ids=torch.tensor([13, target]))


@pytest.mark.parametrize("output", ["logit", "log_prob"])
def test_an_answer_with_a_logit_of_minus_infinity_is_refused(output):
    model = loaded("GPT2LMHeadModel")
    hook = ("unembed.hook_out", lambda logits, hook: logits.index_fill(-1, torch.tensor([12]), float("-inf")))
    with model.hooks(fwd_hooks=[hook]):
        with pytest.raises(kn.UnsupportedModelError, match=rf"{output} = -inf.*ask for another answer") as raised:
            kn.attribute(model, prompts(), output=output)
        assert "wider" not in str(raised.value)
        attr = kn.attribute(model, prompts(), output="prob")
    assert attr.clean[1] == 0 and attr.unconverged == []
    assert not attr.scores[1].any()


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [
        (torch.float16, "torch.bfloat16 or torch.float32"),
        (torch.bfloat16, r"torch\.float32\.$"),
        (torch.float32, "run_with_cache"),
    ],
)
def test_the_remedy_for_nan_answers_depends_on_the_dtype(dtype, cure):
    model = kn.load_model(tiny_hf_model("GPT2LMHeadModel", dtype=dtype))
    hook = ("unembed.hook_out", lambda logits, hook: logits * float("nan"))
    for call in (lambda: kn.attribute(model, prompts()), lambda: kn.measure(model, prompts(), [])):
        with model.hooks(fwd_hooks=[hook]), pytest.raises(kn.UnsupportedModelError, match=cure) as raised:
            call()
        assert ("wider" in str(raised.value)) == (dtype != torch.float32)


def no_number_when_silent(post, hook):
    """Divide by the effect of the neurons, so that the output is NaN where they are silent."""
    return post / post.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("keep", [None, 0.1])
def test_an_attribution_with_nan_along_the_path_is_not_converged(keep):
    model = loaded("GPT2LMHeadModel")
    with model.hooks(fwd_hooks=[(kn.host_of(model).hook_post(1), no_number_when_silent)]):
        attr = kn.attribute(model, prompts(), keep=keep)
    assert attr.unconverged == [(0, 1), (1, 1)]
    assert attr.completeness_gap[:, 1].isnan().all()


def test_methods_without_completeness_are_converged_where_scores_are_finite():
    model, neurons = loaded("GPT2LMHeadModel"), kn.NeuronSet([(0, 1), (0, 2)])
    assert kn.attribute(model, prompts(), method="ablation", neurons=neurons).unconverged == []
    assert kn.attribute(model, prompts(), method="activation").unconverged == []
    attr = kn.attribute(model, prompts(), layers=[2])
    assert attr.unconverged == [] and attr.total[:, 0].isnan().all()


@pytest.mark.parametrize("method", ["activation", "log_prob_gain", "ablation"])
def test_scores_without_a_sum_that_are_no_numbers_are_not_converged(method):
    """Where nothing was computed, nothing failed."""
    spoilt = kn.attribute(loaded("GPT2LMHeadModel"), prompts(), method=method, layers=[0])
    assert spoilt.unconverged == [] and (spoilt.n_points[:, 0] > 0).all() and not spoilt.n_points[:, 1:].any()
    spoilt = replace(spoilt, total=spoilt.total * float("nan"))
    assert spoilt.unconverged == [(0, 0), (1, 0)]
