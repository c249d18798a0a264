"""What a process has in memory before it is copied into workers, so that they share that memory.

Imported by that process alone, after all else.
"""

import gc

from kn_lens._loading import import_all

import_all()
gc.collect()
gc.freeze()  # or collecting garbage would write on every page, and the workers would soon have each its own
