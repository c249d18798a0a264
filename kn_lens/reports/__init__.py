"""Reports on results and on the records of runs: figures, comparisons, pages. No model is loaded.

``figures`` draws tables in the common ``style`` of all figures, and ``export`` writes figures to files. ``notebook``
displays results in notebooks. ``compare`` compares runs. ``html`` builds the page of a run, and ``report`` writes the
page, its figures and its tables. ``paper_tables`` has tables as Markdown and LaTeX. ``reproduce`` is a run with its
figures in one call.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
