"""Imports of the process from which workers are forked, so that they share its memory.

Imported by that process alone, last.
"""

import gc

from kn_lens.hosts import import_model_libraries

import_model_libraries()
gc.collect()
gc.freeze()  # else garbage collection would write to every page, and each worker would soon have its own copy
