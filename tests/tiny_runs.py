"""Facts, checkpoints and studies small enough to run in seconds, and the files that a run leaves."""

import kn_lens as kn
from kn_lens.runs.studies.config import FactsEntry, ModelEntry, StudyConfig
from tests.tiny import COUNTRIES, tiny_checkpoint

CAPITAL = ("The capital of [X] is [Y].", "[Y] is the capital of [X].", "In fact, [X] has its seat in [Y]", "[X], [Y].")
CAPITAL_OF = ("[X] is the capital of [Y].", "The capital of [Y] is [X].", "[X] lies in [Y].")
SEAT = ("The seat of government of [X] is [Y].", "[X] has its seat of government in [Y].", "[Y], seat of [X].")
STUDY_SETTINGS = {"attr_threshold": 0.5, "n_resamples": 5, "max_moves": 1}


def tiny_facts(n=4):
    """``n`` facts of each of three relations; the name of one relation has to be escaped in file names."""
    pairs = list(COUNTRIES.items())[:n]
    facts = [kn.Fact(country, "P36", capital, CAPITAL) for country, capital in pairs]
    facts += [kn.Fact(capital, "P1376", country, CAPITAL_OF) for country, capital in pairs]
    facts += [kn.Fact(country, "seat/of", capital, SEAT) for country, capital in pairs]
    return kn.FactSet(facts)


def tiny_checkpoints(folder):
    """Write a masked and a causal checkpoint, and an empty directory that is none; return the folder."""
    tiny_checkpoint("BertForMaskedLM", folder / "bert")
    tiny_checkpoint("GPT2LMHeadModel", folder / "gpt2")
    (folder / "empty").mkdir()
    return folder


def tiny_study(folder, *names, stages=("neurons",), seeds=(0,), **settings):
    """A study of the named checkpoints in a folder, with one fact set ``tiny``."""
    models = [ModelEntry(name=name, model=str(folder / name), dtype="float64", tags={"which": name}) for name in names]
    return StudyConfig(
        models=models,
        facts=(FactsEntry(name="tiny"),),
        stages=stages,
        seeds=seeds,
        settings={**STUDY_SETTINGS, **settings},
    )


def contents(path):
    """The bytes of every file below a directory but its locks, by relative path."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}
