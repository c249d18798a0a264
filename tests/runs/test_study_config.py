"""``study.toml``: its keys, its resolved values, and the message for each mistake."""

import pytest

from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.studies.config import FactsEntry, ModelEntry, StudyConfig, as_toml, differences, read_study

MODEL = '[[models]]\nmodel = "world-bert"\n'
WHOLE = """
preset = "official"
stages = ["neurons", "effects"]
seeds = [0, 3]
threads = 2
memory = 1.5

[settings]
limit = 5
relations = ["P36", "P30"]

[[models]]
name = "small"
model = "checkpoints/small"
dtype = "float64"
device = "cpu"
tags = { size = "small", seed = 0, 'odd "name"' = 0.5 }

[[models]]
model = "checkpoints/small"
checkpoint = 30

[[models]]
model = "some/model"
checkpoint = 3000
tags = { step = "last" }

[[facts]]
source = "mine.jsonl"
templates = "no such place"

[[facts]]
split = "trained"
"""


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_study_file_is_read_and_its_paths_are_relative_to_it(write, tmp_path):
    for name in ("small/step30", "world"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "mine.jsonl").touch()
    config = read_study(write(WHOLE))
    small, at_30, hub = config.models
    assert small == ModelEntry(
        name="small", model=str(tmp_path / "checkpoints/small"), dtype="float64", device="cpu",
        tags={"size": "small", "seed": 0, 'odd "name"': 0.5},
    )  # fmt: skip
    assert at_30.name == "small-step30" and at_30.model == str(tmp_path / "checkpoints/small/step30")
    assert at_30.revision is None and at_30.tags == {"step": 30}
    assert (hub.name, hub.model, hub.revision, hub.tags) == (
        "model-step3000", "some/model", "step3000", {"step": "last"},
    )  # fmt: skip
    assert config.facts == [
        FactsEntry(name="mine", source=str(tmp_path / "mine.jsonl"), templates="no such place"),
        FactsEntry(name="world", split="trained"),
    ]
    settings = config.settings_for(3)
    assert (settings.preset, settings.seed, settings.limit, settings.relations) == ("official", 3, 5, ("P36", "P30"))
    assert config.memory == 1.5 and config.threads == 2


def test_written_study_is_read_back_as_the_same(write, tmp_path):
    (tmp_path / "checkpoints/small/checkpoint-30").mkdir(parents=True)
    config = read_study(write(WHOLE))
    again = read_study(write(as_toml(config)))
    assert differences(config, again) == [] and as_toml(again) == as_toml(config)
    assert (again.models, again.facts, again.memory) == (config.models, config.facts, config.memory)
    assert [again.settings_for(seed) for seed in (0, 3)] == [config.settings_for(seed) for seed in (0, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a model"),
        ("models = 3", "models is 3; expected a list"),
        ("models = [3]", "models holds 3; expected tables"),
        ('model = "world-bert"', "unknown key 'model'. Did you mean 'models'"),
        ('[[models]]\nmodel = "a"\nrevison = "b"', "'revison' in [[models]] number 1. Did you mean 'revision'"),
        ('[[models]]\nname = "a"', "names no model"),
        ('[[models]]\nmodel = ""', "expected a text"),
        ('[[models]]\nmodel = "a"\ndtype = "float23"', "Did you mean 'float32'"),
        ('[[models]]\nmodel = "a"\ncheckpoint = 3\nrevision = "b"', "expected one of them"),
        ('[[models]]\nmodel = "a"\ncheckpoint = true', "expected a whole number"),
        ('[[models]]\nmodel = "."\ncheckpoint = 3', "there is no checkpoint 3"),
        ('[[models]]\nmodel = "a"\ntags = { size = [1] }', "tag size is [1]"),
        (MODEL + MODEL, "a model twice: world-bert"),
        (MODEL + MODEL + 'name = "other"', "a model twice: world-bert and other"),
        (MODEL + '[[facts]]\n[[facts]]\nsplit = "trained"', "a fact set twice: world"),
        (MODEL + '[[facts]]\nsoruce = "a"', "Did you mean 'source'"),
        ("seeds = [1, 1]\n" + MODEL, "a seed twice: 1"),
        ("seeds = []\n" + MODEL, "needs a seed"),
        ("seeds = [-1]\n" + MODEL, "not negative"),
        ("threads = 0\n" + MODEL, "positive"),
        ("memory = 0\n" + MODEL, "positive"),
        ("[settings]\nseed = 1\n" + MODEL, "beside the settings"),
        ("[settings]\natr_threshold = 1\n" + MODEL, "Did you mean 'attr_threshold'"),
        ('preset = "papper"\n' + MODEL, "Did you mean 'paper'"),
        ("stages = [1]\n" + MODEL, "expected a list of texts"),
        ("seeds = [0\n" + MODEL, "no TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_with_the_file_and_the_cure(write, text, message):
    path = write(text)
    with pytest.raises(DataError) as caught:
        read_study(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_study(tmp_path / "study.toml")


def test_models_facts_and_seeds_may_be_added_but_not_changed_or_lost():
    one = ModelEntry(name="one", model="a")
    two = ModelEntry(name="two", model="b")
    before = StudyConfig(models=[one], seeds=[0])
    assert differences(before, StudyConfig(models=[two, one], seeds=[1, 0], stages=["neurons"], memory=2.0)) == []
    moved = ModelEntry(name="one", model="elsewhere/a", tags={"size": "small"})
    assert differences(before, StudyConfig(models=[moved])) == []
    found = differences(
        before,
        StudyConfig(
            models=[ModelEntry(name="one", model="a", dtype="float64")], seeds=[1], settings={"limit": 3}, threads=2,
            facts=[FactsEntry(name="others")],
        ),
    )  # fmt: skip
    assert found == [
        "threads: 1, now 2",
        "limit: None, now 3",
        "dtype of model one: float32, now float64",
        "facts world: there, now missing",
        "seed 0: there, now missing",
    ]
    assert differences(StudyConfig(models=[one, two]), before) == ["model two: there, now missing"]


def test_settings_of_a_study_are_checked_in_python_too():
    with pytest.raises(ArgumentError, match="a model twice"):
        StudyConfig(models=[ModelEntry(name="a", model="b"), ModelEntry(name="c", model="b")])
