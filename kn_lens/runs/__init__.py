"""Runs: the paper's tables and figures as records in a directory that survives any interruption.

``directory`` keeps the records, ``settings`` and ``data`` say what a run is about, and ``provenance`` what it was made
from. ``stage`` defines a stage and ``context`` what all stages share; ``stages`` has one file a table or figure.
``execute`` runs them, ``planning`` estimates their duration with the counts of ``passes``, and ``reader`` reads a run
back without its model. ``corpora``, ``minimal_pairs`` and ``paper`` hold what the stages read besides: texts, sentences
in pairs, published values. ``studies`` are many runs in one directory, and ``workers`` the engines that compute them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
