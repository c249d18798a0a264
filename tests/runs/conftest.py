"""Runs on a tiny model, shared by several modules."""

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
    """Return a finished run of the module's ``STAGES`` with its ``SETTINGS``: its context and its tables."""
    path = tmp_path_factory.mktemp("run") / "run"
    with open_context(model, tiny_facts(), path, request.module.SETTINGS) as context:
        yield context, run_stages(context, request.module.STAGES, lambda state: None)
