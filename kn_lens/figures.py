"""The old path of ``kn_lens.reports.figures``, kept for one release."""

from warnings import warn

from kn_lens.reports.figures import *  # noqa: F403  # whatever the module offers

warn(
    "kn_lens.figures has moved to kn_lens.reports.figures; the old path goes with the next release.",
    DeprecationWarning,
    stacklevel=2,
)
