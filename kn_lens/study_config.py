"""The old path of ``kn_lens.runs.studies.config``, kept for one release."""

from warnings import warn

from kn_lens.runs.studies.config import *  # noqa: F403  # whatever the module offers

warn(
    "kn_lens.study_config has moved to kn_lens.runs.studies.config; the old path goes with the next release.",
    DeprecationWarning,
    stacklevel=2,
)
