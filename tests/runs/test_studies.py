"""A study in one process: its runs equal single runs, failures are recorded, and finished work is kept."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import fsspec
import pandas as pd
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from transformers import BertForMaskedLM

import kn_lens as kn
from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.context import open_context
from kn_lens.runs.directory import NAMES, locked
from kn_lens.runs.execute import run_stages, stages_named
from kn_lens.runs.stages.order import STAGES
from kn_lens.runs.studies.study import run_study
from kn_lens.runs.workers import engine as engines
from tests.tiny import tiny_checkpoint
from tests.tiny_runs import contents, tiny_facts, tiny_study

FACTS = {"tiny": tiny_facts(2).of("P36", "P1376")}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return two checkpoints, and an empty directory for a third."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        tiny_checkpoint("BertForMaskedLM", folder / f"bert-{seed}", seed=seed)
    (folder / "late").mkdir()
    return folder


class Watch:
    """Remembers which shards were made of which run, and the most models that were in memory at once, not counting
    those that other tests keep.
    """

    def __init__(self):
        self.made, self.most_models = [], 0
        self.of_others = weakref.WeakSet(models_in_memory())

    def __call__(self, job, state):
        if state is None or not state.finished:
            return
        self.made.append((job.name, state.stage.name, state.shard.relation))
        if state.stage.name == "facts":
            self.most_models = max(self.most_models, sum(one not in self.of_others for one in models_in_memory()))


def models_in_memory():
    return [one for one in gc.get_objects() if type(one) is BertForMaskedLM]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """Return a study of two models and of a third, between them, that cannot be loaded: path, rows and watch."""
    out = tmp_path_factory.mktemp("study") / "out"
    watch = Watch()
    rows = run_study(tiny_study(models, "bert-0", "late", "bert-1", seeds=(0, 4)), FACTS, out, watch=watch)
    return out, rows, watch


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "out")


def test_runs_equal_those_of_reproduce(finished, models, tmp_path):
    config = tiny_study(models, "bert-1", seeds=(4,))
    with engines.torch_threads(1):
        model = kn.load_model(models / "bert-1", dtype=torch.float64)
        with open_context(model, FACTS["tiny"], tmp_path / "alone", config.settings_for(4)) as study:
            run_stages(study, stages_named(STAGES, ["neurons"]), lambda state: None)
    alone, there = contents(tmp_path / "alone"), contents(finished[0] / "runs" / "bert-1+tiny+4")
    document = json.loads(there.pop("provenance.json"))
    assert document.pop("tags") == {"which": "bert-1"}
    assert document == json.loads(alone.pop("provenance.json"))
    settings = [line for line in there.pop("config.toml").decode().splitlines() if not line.startswith(NAMES)]
    assert settings == alone.pop("config.toml").decode().splitlines()
    assert there == alone and sum(name.endswith(".parquet") for name in alone) == 8


def test_failed_model_is_recorded_and_the_others_continue(finished):
    out, rows, _ = finished
    assert list(rows["state"]) == ["done", "done", "failed", "failed", "done", "done"]
    failed = rows[rows["state"] == "failed"]
    assert set(failed["where"]) == {"loading the model"} and failed["reason"].str.contains("no configuration").all()
    document = json.loads((out / "failures" / "late+tiny+4.json").read_text())
    assert (
        document["kind"] == "UnsupportedModelError"
        and document["model"]["name"] == "late"
        and "Traceback" in document["trace"]
    )
    assert {path.name for path in (out / "runs").iterdir()} == set(rows["run"][rows["state"] == "done"])


def test_one_model_is_in_memory_at_a_time(finished):
    assert finished[2].most_models == 1


def test_tables_of_all_runs_are_combined(finished):
    out, rows, _ = finished
    pd.testing.assert_frame_equal(pd.read_csv(out / "tables/runs.csv", keep_default_na=False), rows, check_dtype=False)
    for name in ("table2", "coverage"):
        whole = pd.read_csv(out / f"tables/{name}.csv")
        for one, part in whole.groupby("run"):
            alone = pd.read_csv(out / "runs" / one / "tables" / f"{name}.csv")
            pd.testing.assert_frame_equal(part.drop(columns="run").reset_index(drop=True), alone, check_dtype=False)
        assert set(whole["run"]) == set(rows["run"][rows["state"] == "done"])


def test_repeated_study_computes_only_what_is_missing(copy, models):
    before = contents(copy)
    late = tiny_checkpoint("BertForMaskedLM", copy.parent / "late", seed=2)
    config = tiny_study(models, "bert-0", "late", "bert-1", seeds=(0, 4))
    entries = [replace(one, model=str(late)) if one.name == "late" else one for one in config.models]
    (copy / "runs/bert-1+tiny+0/records/neurons/P36.parquet").write_bytes(b"")
    watch = Watch()
    rows = run_study(replace(config, models=entries), FACTS, copy, watch=watch)
    assert (rows["state"] == "done").all() and not list((copy / "failures").iterdir())
    assert {name for name, *_ in watch.made} == {"late+tiny+0", "late+tiny+4", "bert-1+tiny+0"}
    assert [one for one in watch.made if one[0] == "bert-1+tiny+0"] == [("bert-1+tiny+0", "neurons", "P36")]
    after = contents(copy)
    same = [name for name in before if name.startswith("runs")]
    assert same and all(after[name] == before[name] for name in same)


def test_models_and_stages_may_be_added_and_tags_changed(copy, models):
    config = tiny_study(models, "bert-0", "late", "bert-1", stages=("neurons", "answers"), seeds=(0, 4))
    entries = [replace(one, tags={"size": 3}) for one in config.models]
    watch = Watch()
    run_study(replace(config, models=entries), FACTS, copy, watch=watch)
    assert {stage for _, stage, _ in watch.made} == {"answers"} and len(watch.made) == 8
    assert json.loads((copy / "runs/bert-0+tiny+0/provenance.json").read_text())["tags"] == {"size": 3}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": (0,)}, "seed 4: there, now missing"),
        ({"attr_threshold": 0.6}, "attr_threshold: 0.5, now 0.6"),
        ({"names": ("bert-0", "bert-1")}, "model late: there, now missing"),
    ],
)
def test_directory_of_another_study_is_refused_before_any_work(copy, models, changed, message):
    changed = {"names": ("bert-0", "late", "bert-1"), "seeds": (0, 4), **changed}
    names, before = changed.pop("names"), contents(copy)
    with pytest.raises(DataError, match=message):
        run_study(tiny_study(models, *names, **changed), FACTS, copy, watch=pytest.fail)
    assert contents(copy) == before


def test_changed_facts_versions_and_damage_are_reported_before_any_work(copy, models):
    config, before = tiny_study(models, "bert-0", "late", "bert-1", seeds=(0, 4)), contents(copy)
    with pytest.raises(DataError, match=r"data\.source"):
        run_study(config, {"tiny": tiny_facts(3).of("P36", "P1376")}, copy, watch=pytest.fail)
    assert contents(copy) == before
    provenance = copy / "runs/bert-1+tiny+4/provenance.json"
    document = json.loads(provenance.read_text())
    document["made_from"]["versions"]["torch"] = "1.0"
    provenance.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"bert-1\+tiny\+4 was made with other settings \(versions\.torch: \"1\.0\""):
        run_study(config, FACTS, copy, watch=pytest.fail)
    provenance.write_bytes(before["runs/bert-1+tiny+4/provenance.json"])
    (copy / "study.toml").write_text("models = [")
    with pytest.raises(DataError, match=r"study\.toml: no TOML.*--force"):
        run_study(config, FACTS, copy, watch=pytest.fail)
    rows = run_study(config, FACTS, copy, watch=lambda job, state: None, force=True)
    after = contents(copy)
    assert len(rows) == 6 and after.keys() == before.keys()
    assert all(after[name] == text for name, text in before.items() if not name.startswith("failures"))


def test_other_model_of_the_same_name_fails_and_the_others_continue(copy, models):
    config = tiny_study(models, "bert-0", "late", "bert-1", seeds=(0, 4))
    entries = [replace(one, model=str(models / "bert-1"), device="cpu") if one.name == "bert-0" else one
               for one in config.models]  # fmt: skip
    run_study(replace(config, models=entries), FACTS, copy, force=True)
    before = contents(copy)
    entries[0] = config.models[0]
    entries[0] = replace(entries[0], device="cpu")
    rows = run_study(replace(config, models=entries), FACTS, copy)
    row = rows.set_index("run").loc["bert-0+tiny+0"]
    assert row["state"] == "failed" and "model.weights" in row["reason"]
    after = contents(copy)
    assert all(after[name] == text for name, text in before.items() if name.startswith("runs"))


def test_out_of_memory_fails_the_run_alone(models, tmp_path, monkeypatch):
    def load(name, **how):
        if name.endswith("bert-0"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return kn.load_model(name, **how)

    monkeypatch.setattr(engines, "load_model", load)
    rows = run_study(tiny_study(models, "bert-0", "bert-1", stages=("facts",)), FACTS, tmp_path / "out")
    assert list(rows["state"]) == ["failed", "done"] and "out of memory" in rows["reason"][0]


def test_facts_that_no_model_can_be_queried_with_are_reported(models, tmp_path):
    unwritable = [kn.Fact("Ireland", relation, "Dublin☃", ("[X]: [Y]",) * 3) for relation in ("P36", "P30")]
    rows = run_study(tiny_study(models, "bert-0"), {"tiny": kn.FactSet(unwritable)}, tmp_path / "out")
    assert rows["state"][0] == "failed" and "can be queried" in rows["reason"][0]


def test_mistakes_are_reported_before_the_directory_is_made(models, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ArgumentError, match="Did you mean 'neurons'"):
        run_study(tiny_study(models, "bert-0", stages=("neuron",)), FACTS, out)
    with pytest.raises(ArgumentError, match="the study has tiny too"):
        run_study(tiny_study(models, "bert-0"), {"others": FACTS["tiny"]}, out)
    with pytest.raises(ArgumentError, match="No relation 'P9'"):
        run_study(tiny_study(models, "bert-0", relations=["P9"]), FACTS, out)
    assert not out.exists()


def test_other_directories_and_a_second_process_are_refused(models, tmp_path):
    config = tiny_study(models, "bert-0", stages=("facts",))
    (tmp_path / "others").mkdir()
    (tmp_path / "others/file").touch()
    with pytest.raises(ArgumentError, match="holds other files"):
        run_study(config, FACTS, tmp_path / "others")
    run_study(config, FACTS, tmp_path / "out")
    with pytest.raises(ArgumentError, match="run of one model"):
        run_study(config, FACTS, tmp_path / "out/runs/bert-0+tiny+0")
    with locked(tmp_path / "out"), pytest.raises(DataError, match="another process"):
        run_study(config, FACTS, tmp_path / "out")


# --- elsewhere ------------------------------------------------------------------------------------------------------


class Mounted(DirFileSystem):
    """A local directory that behaves like a remote store."""

    protocol = "mounted"
    at = None

    def __init__(self, **options):
        super().__init__(path=str(Mounted.at), fs=fsspec.filesystem("file"), **options)

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("mounted://").rstrip("/")


@pytest.fixture(params=["memory", "mounted"])
def address(request, tmp_path):
    """Return an unused address."""
    if request.param == "mounted":
        Mounted.at = tmp_path / "store"
        fsspec.register_implementation("mounted", Mounted, clobber=True)
        Mounted.clear_instance_cache()
    else:
        fsspec.filesystem("memory").store.clear()
    yield f"{request.param}://bucket/study"


def stored(address):
    fs, root = fsspec.core.url_to_fs(address)
    return {str(path).lstrip("/").removeprefix(f"{root.lstrip('/')}/"): fs.cat(path) for path in fs.find(root)}


def test_remote_study_equals_the_local_one_and_resumes(address, models, tmp_path):
    config = tiny_study(models, "bert-0", "late", stages=("activations",))
    local = tiny_study(models, "bert-0", "late", stages=("activations",))
    run_study(local, FACTS, tmp_path / "local")
    first = Watch()
    run_study(config, FACTS, address, watch=first)
    there, here = stored(address), contents(tmp_path / "local")
    assert there == here and first.made
    again = Watch()
    run_study(config, FACTS, address, watch=again)
    assert again.made == [] and stored(address) == there
    fs, root = fsspec.core.url_to_fs(address)
    fs.rm(f"{root}/runs/bert-0+tiny+0/records/activations/_P36.json")
    run_study(config, FACTS, address, watch=again)
    assert [shard for _, *shard in again.made] == [["activations", "P36"]] and stored(address) == there


def test_run_stopped_in_a_store_is_resumed(address, models, tmp_path):
    config = tiny_study(models, "bert-0", stages=("activations",))

    def stop(job, state):
        if state is not None and state.finished and state.stage.name == "activations":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(config, FACTS, address, watch=stop)
    assert "runs/bert-0+tiny+0/records/activations/_P36.json" in stored(address)
    watch = Watch()
    run_study(config, FACTS, address, watch=watch)
    assert [shard for _, *shard in watch.made] == [["activations", "P1376"]]
    run_study(config, FACTS, tmp_path / "local")
    assert stored(address) == contents(tmp_path / "local")


def test_stores_with_other_files_and_unknown_stores_are_refused(address, models):
    fs, root = fsspec.core.url_to_fs(address)
    fs.makedirs(root, exist_ok=True)
    fs.pipe(f"{root}/file", b"another's")
    config = tiny_study(models, "bert-0")
    with pytest.raises(ArgumentError, match="holds other files"):
        run_study(config, FACTS, address, watch=pytest.fail)
    with pytest.raises(ArgumentError, match="nosuch"):
        run_study(config, FACTS, "nosuch://bucket/study", watch=pytest.fail)


def test_an_address_of_a_local_directory_is_that_directory(models, tmp_path):
    run_study(tiny_study(models, "bert-0", stages=("facts",)), FACTS, f"file://{tmp_path}/out")
    assert (tmp_path / "out/study.toml").exists() and (tmp_path / "out/lock").exists()


def test_a_store_that_fails_ends_the_study_with_the_reason(address, models, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no room left")

    fs, _ = fsspec.core.url_to_fs(address)
    monkeypatch.setattr(type(fs), "open", full)
    with pytest.raises(DataError, match="no room left"):
        run_study(tiny_study(models, "bert-0", stages=("facts",)), FACTS, address)
