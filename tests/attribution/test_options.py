"""The options of an attribution: their names and defaults are defined once."""

import inspect
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

import kn_lens as kn
from kn_lens.attribution.method import AttributionMethod, PathMethod
from kn_lens.attribution.options import METHODS, AttributionKeywords, AttributionOptions, Method
from tests.tiny import loaded

TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact("Ireland", "P36", "Dublin", TEMPLATES)]


NOT_OPTIONS = ("model", "prompts", "positions")


def test_arguments_of_attribute_are_the_options_with_their_defaults():
    parameters = inspect.signature(kn.attribute).parameters
    given = {name: parameter.default for name, parameter in parameters.items() if name not in NOT_OPTIONS}
    assert given == {field.name: field.default for field in fields(AttributionOptions)}
    assert set(get_type_hints(AttributionKeywords)) == set(given)


def test_methods_are_registered_by_their_names():
    assert set(METHODS) == set(get_args(Method))
    assert all(issubclass(method, AttributionMethod) for method in METHODS.values())
    paths = {name for name, method in METHODS.items() if issubclass(method, PathMethod)}
    assert paths == {"integrated_gradients", "single_path"}


def test_an_unknown_argument_is_refused_by_name():
    model = loaded("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, FACTS)
    for call in (kn.attribute, kn.attribute_in_parts):
        with pytest.raises(TypeError, match="tolerence"):
            call(model, prompts, tolerence=0.1)
