"""Old module paths can be imported for one release, and name the new ones."""

import json
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
import importlib, json, sys, warnings

found = {}
for old_path, (new_path, names) in json.loads(sys.argv[1]).items():
    for module in [module for module in sys.modules if module.startswith("kn_lens.experiments")]:
        del sys.modules[module]  # so that each of them is the first to be imported
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = importlib.import_module(old_path)
    messages = [str(warning.message) for warning in caught if warning.category is DeprecationWarning]
    new = importlib.import_module(new_path)
    missing = [name for name, new_name in names.items() if getattr(old, name, None) is not getattr(new, new_name)]
    found[old_path] = [message for message in messages if "has moved to" in message], missing
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """Return the messages of each old path in a new process, and its names that are not those of the new path."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(MOVED)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("old_path", MOVED)
def test_old_module_path_has_the_names_of_the_new_one_and_warns(found, old_path):
    messages, missing = found[old_path]
    assert len(messages) == 1 and "kn_lens" in messages[0]
    assert not missing


def test_hosts_is_a_package_with_the_names_that_the_module_had():
    from kn_lens.hosts import Host, host_of, load_model

    assert all(map(callable, (Host, host_of, load_model)))
