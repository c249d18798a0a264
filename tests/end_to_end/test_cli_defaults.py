"""Defaults of the command line are those of the functions that the options go to."""

import inspect

import pytest
import torch

import kn_lens as kn
from kn_lens._core import defaults
from kn_lens.cli._app import app
from kn_lens.edits import NamedEditors
from kn_lens.reports.compare.comparison import compare_runs
from kn_lens.runs.settings import Settings

FUNCTIONS = {
    "demo": [],
    "find": [kn.attribute, kn.find, kn.refine, kn.FactSet.world],
    "intervene": [kn.controlled_effects, kn.FactSet.world],
    "reproduce": [Settings, kn.FactSet.world],
    "study": [kn.run_study],
    "compare": [compare_runs],
    "report": [kn.write_report],
    "models": [],
    "edit update": [kn.update_fact, kn.FactSet.world],
    "edit erase": [kn.erase_relation, kn.FactSet.world],
    "edit compare": [kn.compare_edits, NamedEditors, kn.FactSet.world],
    "edit show": [],
    "edit apply": [kn.measure, kn.FactSet.world],
    "edit export": [kn.export],
    "data read": [kn.FactSet.world],
    "data convert": [kn.FactSet.world],
    "data check": [kn.FactSet.world],
}
"""The functions that take the options of each command, under the same names."""
OWN = {"model", "facts", "fact", "check", "dtype", "seed", "engine", "workers", "gpus", "controls", "position"}
OWN |= {"held_out", "others"}
"""Options whose default is the command's own, or is tested below."""
PYTHON_NAMES = {"target": "output"}
"""Options with another name than their parameter: beside ``--out``, ``--output`` would be read as a file."""
UNSET = (None, False, inspect.Parameter.empty)


def commands(group, prefix=""):
    """The function of each command by name, also of the commands of a group."""
    for command in group.registered_commands:
        yield f"{prefix}{command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        yield from commands(inner.typer_instance, f"{prefix}{inner.name} ")


COMMANDS = dict(commands(app))


def test_every_command_is_covered():
    assert set(COMMANDS) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_of_a_command_match_the_functions_it_calls(name):
    """An option without a default leaves the choice to the function."""
    for option, parameter in inspect.signature(COMMANDS[name]).parameters.items():
        option = PYTHON_NAMES.get(option, option)
        if parameter.default in UNSET:
            continue
        expected = []
        for function in FUNCTIONS[name]:
            parameters = inspect.signature(function).parameters
            if option in parameters and parameters[option].default not in UNSET:
                expected.append(parameters[option].default)
        assert expected or option in OWN, f"{option} of {name} goes to no function that is named here"
        assert set(expected) <= {parameter.default}, option


def test_default_dtype_matches_the_library():
    assert kn.host_of(kn.load_model("world-bert")).dtype == getattr(torch, defaults.DTYPE)


def test_weights_are_checked_by_default_as_in_the_library():
    assert inspect.signature(kn.load_model).parameters["check"].default is True
    for name in ("find", "intervene", "edit update", "edit erase", "edit apply", "edit export"):
        assert inspect.signature(dict(commands(app))[name]).parameters["check"].default is True


def test_default_seeds_match_the_functions():
    functions = (kn.controlled_effects, kn.update_effects, kn.erase_effects, compare_runs, Settings)
    seeds = {inspect.signature(function).parameters["seed"].default for function in functions}
    options = {
        parameter.default
        for command in COMMANDS.values()
        for name, parameter in inspect.signature(command).parameters.items()
        if name == "seed"
    }
    assert options == seeds == {0}


def test_default_settings_match_the_functions_of_the_stages():
    settings = Settings()
    functions = {
        kn.attribute: ("quadrature", "n_steps", "tolerance"),
        kn.refine_by_relation: ("attr_threshold", "share_threshold", "min_prompts", "max_moves"),
        kn.update_fact: ("max_share",),
        kn.edit_table: ("n_resamples",),
    }
    for function, names in functions.items():
        for name in names:
            assert getattr(settings, name) == inspect.signature(function).parameters[name].default
    form = kn.edits.resolve_form(None, None, settings.update_scaling, settings.update_signed)
    assert settings.lambdas == form.lambdas
    update = inspect.signature(kn.update_fact).parameters
    assert (settings.update_scaling, settings.update_signed) == (update["scaling"].default, update["signed"].default)
    assert settings.erase_value == inspect.signature(kn.erase_relation).parameters["value"].default
