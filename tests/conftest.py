"""The suite runs with the shapes and types in the signatures of these modules checked at run time.

Modules whose tests pass wrong types on purpose, to read the error message, are not among them.
"""

import gc
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from tests.typecheck import check_modules

CHECKED = """
    attribution.baselines attribution.layer_context attribution.outputs
    hosts.bridge hosts.hooked hosts.partial_forward interventions.scoring
""".split()
check_modules([f"kn_lens.{module}" for module in CHECKED])

# How long one example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# After the checks, which have no hold on modules that are imported before them.
import kn_lens as kn  # noqa: E402
from tests.effects import FACTS, MODELS  # noqa: E402
from tests.reliability.state import differences, state_of  # noqa: E402
from tests.tiny import loaded  # noqa: E402

# A job in the background of a shell ignores Ctrl-C, and the commands that it starts inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave half a million objects of imported modules and collected tests out of every later garbage collection."""
    gc.freeze()


SOFTMAX = torch.nn.functional.softmax


@pytest.fixture(scope="session", autouse=True)
def softmax_summed_in_float64() -> Iterator[None]:
    """Sum the rows of attention in float64 where transformers casts those of a float64 model to float32.

    Rows are rounded to float32 as before. A sum in float32 is taken in as many parts as the processor's vectors have
    numbers, so that what padding adds to a row changes its rounding on some processors and not on others.
    """

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if scores.dtype is torch.float64 and kwargs.get("dtype") is torch.float32:
            del kwargs["dtype"]
            return SOFTMAX(scores.float().double(), *args, **kwargs).float()
        return SOFTMAX(scores, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", softmax)
        yield


@pytest.fixture
def softmax_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `softmax_summed_in_float64`, for what is compared with another process or another way to cast."""
    monkeypatch.setattr(torch.nn.functional, "softmax", SOFTMAX)


@pytest.fixture(params=MODELS)
def model_and_prompts(request):
    """A model and prompts of two relations; the model has to come back as it was."""
    model = loaded(request.param)
    before = state_of(model)
    yield model, kn.make_prompts(model, FACTS)
    assert not differences(before, state_of(model))


@pytest.fixture
def no_passes(monkeypatch):
    """A model whose forward pass fails the test."""
    model = loaded("GPT2LMHeadModel")

    def forward(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(model.original_model, "forward", forward)
    with pytest.raises(AssertionError, match="the model ran"):
        kn.predict(model, kn.make_prompts(model, FACTS))
    return model


@pytest.fixture
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out the casts to float32 that attention and norms make even in a float64 model.

    Hugging Face and TransformerLens make them at the same places or not, after sums in the same order or not, so that
    their results differ by roundings of float32; without the casts they compute what the architecture defines.
    """
    softmax, to = torch.nn.functional.softmax, Tensor.to

    def widened(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def wide(target: Any) -> Any:
            return torch.float64 if target is torch.float32 and self.dtype is torch.float64 else target

        return to(self, *map(wide, args), **{key: wide(value) for key, value in kwargs.items()})

    monkeypatch.setattr(Tensor, "to", widened)
    monkeypatch.setattr(Tensor, "float", lambda self: widened(self, torch.float32))
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, **dtype: softmax(scores, dim=dim))
