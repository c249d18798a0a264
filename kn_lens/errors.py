"""The exceptions of kn_lens.

Each message states the value received, the value expected, the nearest match if there is one, and the remedy. Errors
are raised before the model runs, so that a failed call costs nothing and changes nothing, except for conditions that
only a run can show, such as NaN answers. ``docs/errors`` has a page for each class, with its most common messages,
their causes and their remedies.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from kn_lens._core.escape import shown


class KNLensError(Exception):
    r"""Base class of all exceptions that kn_lens raises deliberately.

    ``str`` escapes the control characters of a message and hides credentials, because a message may quote files, models
    and other libraries. ``args`` holds the unaltered message.

    >>> print(KNLensError("no relation \x1b[2J there"))
    no relation \x1b[2J there
    """

    def __str__(self) -> str:
        return shown(super().__str__(), keep="\n")


class ArgumentError(KNLensError, ValueError):
    """An argument has an invalid value, names an object that does not exist, or conflicts with another argument."""


class DataError(KNLensError):
    """A file of facts, neurons, scores, edits or results cannot be read or written, or has invalid content."""


class EditError(KNLensError):
    """A weight edit cannot be computed, applied, undone or saved."""


class HookError(KNLensError):
    """A hook does not exist on the model, or its activation has an unexpected shape."""


class PromptError(KNLensError):
    """A fact cannot be turned into a prompt for this model without a change of its content."""


class NoPromptError(PromptError):
    """No pair of fact and template fits this model, although each pair is valid in itself."""


class UnsupportedModelError(KNLensError):
    """The model is not supported, or not in the required state: evaluation mode, unprocessed and finite weights."""


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the nearest of the ``known`` names, or an empty string if none is near.

    The name ``got`` itself is never suggested. Whatever is no name has no near one.

    >>> did_you_mean("P63", ["P36", "P1376", "P63"])
    " Did you mean 'P36'?"
    """
    if not isinstance(got, str):
        return ""
    options = {option.casefold(): option for option in known if option != got}
    near = get_close_matches(got.casefold(), options, n=1)
    return f" Did you mean {options[near[0]]!r}?" if near else ""
