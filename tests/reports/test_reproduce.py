"""``kn.reproduce`` equals the command: the same tables, the same directory, the same way to resume."""

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.runs.context import open_context
from kn_lens.runs.execute import run_stages, stages_named
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.order import STAGES
from tests.tiny import tiny_model
from tests.tiny_runs import tiny_facts

CHANGED = {"attr_threshold": 0.5, "n_resamples": 40, "limit": 2, "relations": ["P36", "P1376"]}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_tables_and_files_equal_those_of_the_command(model, tmp_path):
    done = []
    tables = kn.reproduce(
        model, tiny_facts(), tmp_path / "one", stages=["effects"], preset="official", watch=done.append, **CHANGED
    )
    assert done[-1].stage.name == "effects" and done[-1].finished
    with open_context(model, tiny_facts(), tmp_path / "other", Settings.of("official", **CHANGED)) as context:
        expected = run_stages(context, stages_named(STAGES, ["effects"]), lambda state: None)
    assert tables.keys() == expected.keys()
    for name in tables:
        pd.testing.assert_frame_equal(tables[name], expected[name])
        written = (tmp_path / "one" / "tables" / f"{name}.csv").read_bytes()
        assert written == (tmp_path / "other" / "tables" / f"{name}.csv").read_bytes()
    assert (tmp_path / "one" / "figures" / "effects.html").exists()
    assert kn.write_report(tmp_path / "one").exists()


def test_repeated_call_recomputes_nothing(model, tmp_path):
    given = {"model": model, "facts": tiny_facts(), "out": tmp_path / "run", "stages": ["answers"], **CHANGED}
    kn.reproduce(**given)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "records").rglob("*.parquet")}
    assert stamps
    kn.reproduce(**given)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with pytest.raises(kn.DataError, match="limit"):
        kn.reproduce(**{**given, "limit": 3})
    kn.reproduce(**{**given, "limit": 3}, force=True)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"stages": ["efects"]}, "Did you mean 'effects'"),
        ({"limits": 3}, "Did you mean 'limit'"),
        ({"preset": "papers"}, "Did you mean 'paper'"),
        ({"relations": ["P63"]}, "Did you mean 'P36'"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(model, tmp_path, wrong, match):
    with pytest.raises(kn.ArgumentError, match=match):
        kn.reproduce(model, tiny_facts(), tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()
