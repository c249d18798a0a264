"""``python -m kn_lens.cli``: the same as ``kn-lens``."""

from kn_lens.cli import main

main()
