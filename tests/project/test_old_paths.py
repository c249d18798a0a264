"""Old module paths can be imported for one release, and name the new ones."""

import subprocess
import sys

import pytest

MOVED = {
    "kn_lens.experiments.settings": ("kn_lens.runs", {"Settings": "Settings"}),
    "kn_lens.experiments.study": (
        "kn_lens.runs",
        {"Shown": "TableDisplay", "Stage": "Stage", "Study": "RunContext", "write_records": "write_records"},
    ),
    "kn_lens.experiments.reproduction": ("kn_lens.runs", {"open_study": "open_context"}),
    "kn_lens.experiments.running": ("kn_lens.runs", {"run": "run_stages", "with_needs": "with_needs"}),
    "kn_lens.experiments.stages": ("kn_lens.runs.stages.order", {"STAGES": "STAGES"}),
    "kn_lens.fact_files": ("kn_lens.facts.readers", {"Record": "Record", "read_patterns": "read_patterns"}),
    "kn_lens.figures": ("kn_lens.reports.figures", {"neuron_scores": "neuron_scores", "predictions": "predictions"}),
    "kn_lens.study_config": ("kn_lens.runs.studies.config", {"ModelEntry": "ModelEntry", "StudyConfig": "StudyConfig"}),
}
"""Old path, new path, and the new name of each old one."""

SCRIPT = """
import importlib, sys, warnings

old_path, new_path, *pairs = sys.argv[1:]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    old = importlib.import_module(old_path)
messages = [str(warning.message) for warning in caught if warning.category is DeprecationWarning]
assert sum("kn_lens" in message and "has moved to" in message for message in messages) == 1, messages
new = importlib.import_module(new_path)
for pair in pairs:
    old_name, _, new_name = pair.partition("=")
    assert getattr(old, old_name) is getattr(new, new_name), pair
"""


@pytest.mark.parametrize("old_path", MOVED)
def test_old_module_path_has_the_names_of_the_new_one_and_warns(old_path):
    new_path, names = MOVED[old_path]
    pairs = [f"{old}={new}" for old, new in names.items()]
    subprocess.run([sys.executable, "-c", SCRIPT, old_path, new_path, *pairs], check=True)


def test_hosts_is_a_package_with_the_names_that_the_module_had():
    from kn_lens.hosts import Host, host_of, load_model

    assert all(map(callable, (Host, host_of, load_model)))
