"""Folders of neuron sets: what ``datasets`` and ``huggingface_hub`` read is what was written."""

import json
import warnings

import pytest

import kn_lens as kn
from kn_lens.hosts import ModelIdentity


@pytest.fixture(scope="module")
def model():
    return kn.load_model("world-bert")


@pytest.fixture(scope="module")
def sets():
    facts = kn.FactSet.world()
    strange = kn.Fact('A "b": |c', "my: relation", "ü\u2028x", ("[X] is [Y].",), uid="4")
    return {
        facts.find("Ireland", "P36"): kn.NeuronSet(["L2N7", "L3N105"]),
        facts.find("Kenya", "P36"): kn.NeuronSet(),
        strange: kn.NeuronSet(["L0N0"]),
    }


@pytest.fixture
def folder(model, sets, tmp_path):
    return kn.write_dataset(tmp_path / "new" / "sets", sets, model=model, license="cc-by-4.0", attr_threshold=0.2)


def test_datasets_loads_the_folder_and_gives_the_sets_back(folder, sets, tmp_path):
    datasets = pytest.importorskip("datasets")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library itself
        rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        read = {row["key"]: kn.NeuronSet(row["neurons"]) for row in rows}
    assert kn.match_facts(read, sets) == sets
    for fact, row in zip(sets, rows, strict=True):
        assert (row["subject"], row["relation"], row["object"], row["uid"]) == (
            fact.subject,
            fact.relation,
            fact.object,
            fact.uid,
        )
        assert (tuple(row["templates"]), row["model"]) == (fact.templates, "world-bert")
    assert kn.FactSet.from_frame(rows.to_pandas()).facts == tuple(sets)


def test_card_is_one_that_the_hub_reads(folder, model):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["pretty_name"] == "Knowledge neurons of world-bert"
    assert (data["license"], data["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    (config,) = data["configs"]
    (files,) = config["data_files"]
    assert (files["split"], (folder / files["path"]).is_file()) == ("train", True)
    assert ModelIdentity.of(model).digest in card.text
    assert "| attr_threshold | 0.2 |" in card.text and "capital (P36), my: relation" in card.text


def test_a_folder_appears_whole_or_not_at_all(folder, sets, model, tmp_path):
    with pytest.raises(kn.DataError, match="exists; expected the name of a folder to make"):
        kn.write_dataset(folder, sets, model=model)
    (tmp_path / "file").write_text("")
    with pytest.raises(kn.DataError, match="cannot be written"):
        kn.write_dataset(tmp_path / "file" / "sets", sets, model=model)
    other = tmp_path / "other"
    for wrong, message in (
        ({}, "no facts to write"),
        (kn.NeuronSet(["L0N0"]), "mapping from facts"),
        ({next(iter(sets)): kn.NeuronSet(["L99N0"])}, "has no neuron L99N0"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.write_dataset(other, wrong, model=model)
    assert not other.exists() and json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["file", "new"]'
