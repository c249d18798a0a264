"""The depth of the calls between ``attribute`` and a pass of the model."""

import sys
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.hosts import Host
from tests.tiny import loaded

DEEPEST = 9
"""Functions of the library from ``attribute`` down to the caller of the host, which runs the model."""
ONCE = {"_output_forms", "_find_output_forms", "find_row_leaves", "_probe_logits"}
"""Functions that run a few tokens once, to see how a model is built."""
PACKAGE = str(Path(kn.__file__).parent)
TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact("Ireland", "P36", "Dublin", TEMPLATES), kn.Fact("Peru", "P36", "Lima", TEMPLATES)]


def functions_below(name):
    """Return the library's functions on the stack, from the outermost of that name on, without type checks."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    names.reverse()
    return names[names.index(name) :]


@pytest.mark.parametrize("method", ["integrated_gradients", "single_path", "gradient_x_activation", "ablation"])
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_the_call_depth_from_attribute_to_a_pass_is_bounded(architecture, method, monkeypatch):
    model = loaded(architecture)
    prompts = kn.make_prompts(model, FACTS)
    options = {"neurons": [kn.Neuron(1, 2)]} if method in ("single_path", "ablation") else {}
    calls, logits = [], Host.logits

    def watched(self, *args, **kwargs):
        calls.append(functions_below("attribute"))
        return logits(self, *args, **kwargs)

    monkeypatch.setattr(Host, "logits", watched)
    kn.attribute(model, prompts, method=method, **options)
    # Once the host looks at what a block returns and receives, on a few tokens.
    passes = [functions for functions in calls if not ONCE & set(functions)]
    deepest = max(passes, key=len)
    assert len(deepest) <= DEEPEST, " > ".join(deepest)
