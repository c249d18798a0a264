"""The old path of ``kn_lens.runs``, kept for one release with the names that stages of one's own were written with."""

import sys
from importlib import import_module
from types import ModuleType
from warnings import warn

from kn_lens import runs

MOVED = {
    "reproduction": {"open_study": runs.open_context},
    "running": {"run": runs.run_stages, "with_needs": runs.with_needs},
    "settings": {"Settings": runs.Settings},
    "study": {
        "Shown": runs.TableDisplay,
        "Stage": runs.Stage,
        "Study": runs.RunContext,
        "write_records": runs.write_records,
    },
}
"""The names of each module, as they were."""

warn(
    "kn_lens.experiments has moved to kn_lens.runs; the old path goes with the next release.",
    DeprecationWarning,
    2,
)

for module_name, names in MOVED.items():
    module = ModuleType(f"{__name__}.{module_name}", f"The old path of names in ``{runs.__name__}``.")
    vars(module).update(names)
    sys.modules[module.__name__] = module
    globals()[module_name] = module

sys.modules[f"{__name__}.stages"] = import_module("kn_lens.runs.stages.order")
sys.modules[f"{__name__}.run_directory"] = import_module("kn_lens.runs.directory")
