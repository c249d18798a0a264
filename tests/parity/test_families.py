"""In every family, batched attribution from the layer up equals full passes over one unpadded prompt at a time."""

import pytest
import torch

import kn_lens as kn
from tests.parity.full_passes import assert_scores_of_full_passes, full_pass, prompts_for
from tests.tiny import CAUSAL, MASKED, N_LAYERS, equal, loaded, tiny_model

# These compute the softmax of attention in float32, whatever the weights are in.
ROUGH = {"GPTNeoForCausalLM", "GPTJForCausalLM", "MptForCausalLM"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_attribution_equals_full_passes_one_by_one(architecture, dtype):
    model = loaded(architecture) if dtype == torch.float64 else tiny_model(architecture, dtype=dtype)
    read_pos = [5, 8, 5, 3] if architecture in CAUSAL else [3, 4, 3, 2]
    share = 1e-5 if dtype == torch.float32 else 1e-10
    assert_scores_of_full_passes(
        model, prompts_for(model, [6, 9, 6, 4], read_pos), 1e-4 if architecture in ROUGH else share
    )


@pytest.mark.parametrize("architecture", CAUSAL)
def test_causal_models_can_be_read_before_the_last_token(architecture):
    """Later tokens may depend on the changed activation; another prompt of the batch is read at its last token."""
    model = loaded(architecture)
    share = 1e-4 if architecture in ROUGH else 1e-10
    prompts = prompts_for(model, [9, 4, 3], [4, 0, 2])
    assert_scores_of_full_passes(model, prompts, share)

    # Passes that change several layers at once.
    neurons = kn.NeuronSet([(layer, index) for layer in range(N_LAYERS) for index in (1, 5)])
    after = kn.measure(model, prompts, kn.Suppress(neurons))["after"]
    for row in range(len(prompts)):
        alone = prompts.select(torch.tensor([row]))
        with torch.no_grad(), model.hooks(fwd_hooks=kn.Suppress(neurons).hooks(model, alone)):
            assert float(full_pass(model, prompts, row, 0, None)[0]) == pytest.approx(after[row], rel=share)
    attr = kn.attribute(model, prompts, method="gradient_x_activation")
    for layer in range(N_LAYERS):
        equal(attr.scores[:, layer], kn.reference_attribution(model, prompts, layer, rule="right", n_steps=1), share)
