"""The suite runs with the shapes and types in the signatures of these modules checked at run time.

Modules whose tests pass wrong types on purpose, to read the error message, are not among them.
"""

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.typecheck  # the hook looks it up as an attribute of its package

CHECKED = "outputs hosts _host _hooked resume engine baselines _reading".split()
install_import_hook([f"kn_lens.{module}" for module in CHECKED], f"{tests.typecheck.__name__}.checked")

# How long one example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
