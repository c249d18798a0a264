"""The list of stages: an order in which they can run, with names and settings that identify their records."""

from dataclasses import fields

import pytest

from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.order import STAGES


def test_names_are_distinct():
    assert len({stage.name for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_follows_the_stages_whose_records_it_reads(stage):
    earlier = STAGES[: STAGES.index(stage)]
    assert all(needed in earlier for needed in stage.needs)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_depends_on_settings_that_exist(stage):
    known = {field.name for field in fields(Settings)}
    assert set(stage.settings) <= known
    assert len(set(stage.settings)) == len(stage.settings)
