"""The exceptions of kn_lens.

Every message says what was got, what was expected, the nearest match where there is one, and the cure; and every one
is raised before the model runs, so that a failed call costs nothing and changes nothing. ``docs/errors`` has a page
about each exception, with the messages that people meet, their causes and their cures.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from kn_lens._shown import shown


class KNLensError(Exception):
    r"""Base of everything that kn_lens raises on purpose.

    What files, models and other libraries put into a message is shown with control characters escaped and without
    credentials, wherever it is printed; ``args`` have it as it is.

    >>> print(KNLensError("no relation \x1b[2J there"))
    no relation \x1b[2J there
    """

    def __str__(self) -> str:
        return shown(super().__str__(), keep="\n")


class ArgumentError(KNLensError, ValueError):
    """An argument is out of its range or names something that does not exist."""


class DataError(KNLensError):
    """A fact or neuron file cannot be read, or holds something that it must not."""


class EditError(KNLensError):
    """A weight edit cannot be made, applied, undone or stored."""


class HookError(KNLensError):
    """A hook name does not exist on the model, or its activation has another shape than promised."""


class PromptError(KNLensError):
    """A fact cannot be turned into a prompt for this model without changing what it says."""


class NoPromptError(PromptError):
    """Of all pairs of fact and template, none can be put to this model: not an error in any of them."""


class UnsupportedModelError(KNLensError):
    """The model cannot be hosted, or is not in the state (evaluation mode, raw weights, finite) that a call needs."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of ``known``, or an empty string when nothing is near.

    What was got is no cure of itself, and never proposed.

    >>> did_you_mean("P63", ["P36", "P1376", "P63"])
    " Did you mean 'P36'?"
    """
    options = {option.casefold(): option for option in known if option != got}
    near = get_close_matches(got.casefold(), options, n=1)
    return f" Did you mean {options[near[0]]!r}?" if near else ""
