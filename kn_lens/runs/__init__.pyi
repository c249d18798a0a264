from .context import RunContext, open_context
from .execute import run_stages, with_needs
from .settings import Settings
from .stage import Stage, TableDisplay, write_records
from .stages.neurons import NEURONS
from .statistics import (
    Statistic,
    bootstrap_table,
    bootstrap_tables,
    change_ratio,
    fact_mean,
    fact_share,
    perplexity,
    with_control,
)
from .studies.config import FactsEntry, ModelEntry, StudyConfig, read_study
from .studies.study import run_study

__all__ = [
    "NEURONS",
    "FactsEntry",
    "ModelEntry",
    "RunContext",
    "Settings",
    "Stage",
    "Statistic",
    "StudyConfig",
    "TableDisplay",
    "bootstrap_table",
    "bootstrap_tables",
    "change_ratio",
    "fact_mean",
    "fact_share",
    "open_context",
    "perplexity",
    "read_study",
    "run_stages",
    "run_study",
    "with_control",
    "with_needs",
    "write_records",
]
