"""What a model must have for a public function to accept it."""

import importlib.metadata

import pytest
from beartype import beartype

import kn_lens as kn
from kn_lens.hosts import HookedModel, Host
from tests.tiny import tiny_hf_model, tiny_model

VERSION = importlib.metadata.version("transformer-lens")


@beartype
def accept(model: HookedModel | Host) -> None:
    """Checks the type as the signatures of the public functions declare it."""


class Double:
    """A test double with the members of the protocol, and no others."""

    cfg, hook_dict = None, {}

    def hooks(self, fwd_hooks=(), bwd_hooks=()):
        return None

    def run_with_hooks(self, tokens):
        return tokens

    def run_with_cache(self, tokens):
        return tokens, {}

    def __call__(self, tokens):
        return tokens


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_a_bridge_and_its_host_are_accepted_by_a_type_checker_at_run_time(architecture):
    model = tiny_model(architecture)
    accept(model)
    accept(kn.host_of(model))


@pytest.mark.skipif(not VERSION.startswith("3."), reason="TransformerLens 4 has these classes no longer")
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_the_older_classes_are_accepted(architecture):
    accept(kn.load_model(tiny_hf_model(architecture), host="hooked"))


def test_a_test_double_is_accepted():
    accept(Double())


@pytest.mark.parametrize("value", ["world-bert", None, object()], ids=["str", "None", "object"])
def test_what_is_no_model_is_not(value):
    assert not isinstance(value, HookedModel)


def test_a_hugging_face_model_is_not():
    assert not isinstance(tiny_hf_model("GPT2LMHeadModel"), HookedModel)


def test_the_host_of_a_host_is_itself():
    host = kn.host_of(tiny_model("GPT2LMHeadModel"))
    assert kn.host_of(host) is host
