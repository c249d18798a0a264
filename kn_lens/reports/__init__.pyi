from . import figures as figures
from .compare.comparison import Comparison, compare_runs
from .paper_tables import format_table
from .report import write_comparison, write_figures, write_report, write_tables
from .reproduce import reproduce

__all__ = [
    "Comparison",
    "compare_runs",
    "figures",
    "format_table",
    "reproduce",
    "write_comparison",
    "write_figures",
    "write_report",
    "write_tables",
]
