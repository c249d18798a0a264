"""Knowledge neurons on TransformerLens: find, measure and edit the neurons of a language model that carry a fact.

The public names are listed in ``__init__.pyi`` and imported on first use, because importing PyTorch takes longer than
answering ``kn-lens --help`` may.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
