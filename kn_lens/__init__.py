"""Knowledge neurons on TransformerLens: find, measure and edit the neurons of a language model that carry a fact.

The public names are listed in ``__init__.pyi`` and imported on first use, because importing PyTorch takes longer than
answering ``kn-lens --help`` may.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"
_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Return a public object, which is imported now.

    Raises:
        AttributeError: there is none of this name; the message names the nearest.
    """
    if name in __all__ or name.startswith("_"):
        return _public_name(name)
    from kn_lens.errors import did_you_mean

    longer = [known for known in __all__ if known.startswith(name)]
    hint = f" Did you mean {longer[0]!r}?" if longer else did_you_mean(name, __all__)
    raise AttributeError(f"kn_lens has no {name!r}.{hint or ' dir(kn_lens) lists what it has.'}")
