"""The old path of ``kn_lens.facts.readers``, kept for one release."""

from warnings import warn

from kn_lens.facts.readers import *  # noqa: F403  # whatever the module offers

warn(
    "kn_lens.fact_files has moved to kn_lens.facts.readers; the old path goes with the next release.",
    DeprecationWarning,
    stacklevel=2,
)
