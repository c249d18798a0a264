"""Runs on a tiny model, which several modules look at."""

import pytest

from kn_lens.runs.context import open_context
from kn_lens.runs.execute import run_stages
from tests.tiny import tiny_model
from tests.tiny_runs import tiny_facts


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def finished(request, model, tmp_path_factory):
    """A run of the module's ``STAGES`` with its ``SETTINGS`` that ran through: its context, and its tables."""
    path = tmp_path_factory.mktemp("run") / "run"
    with open_context(model, tiny_facts(), path, request.module.SETTINGS) as context:
        yield context, run_stages(context, request.module.STAGES, lambda state: None)
