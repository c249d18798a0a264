"""Arbitrary files are read or refused with an error of the library, in bounded time."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.edits.weight_edit import Checkpoint
from kn_lens.facts.readers import read_patterns
from kn_lens.runs.corpora import corpus_of, digest_of_texts
from kn_lens.runs.minimal_pairs import read_pairs
from kn_lens.runs.studies.config import as_toml, differences
from tests.reliability.made_scores import score_file, score_prompts, written_scores
from tests.reliability.tries import JSON, NASTY, changed, damaged, fuzz, taken_or_refused

FACT = {
    "subject": "Ireland",
    "relation": "P36",
    "object": "Dublin",
    "uid": "7",
    "templates": ["[X] has [Y].", "[Y], [X]"],
}
FACTS = [FACT, {"subject": "Peru", "relation": "P36", "object": "Lima", "template": "The capital of [X] is [Y]."}]
CASE = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} lies in", "relation_id": "P30", "subject": "Peru", "target_true": {"str": "America", "id": "Q1"},
    },
    "paraphrase_prompts": ["Some words. Peru is in"],
}  # fmt: skip
UPDATE = {
    **CASE,
    "requested_rewrite": {**CASE["requested_rewrite"], "target_new": {"str": "Asia"}},
    "neighborhood_prompts": ["Chile lies in"],
}
KNOWEDIT = {
    "subject": "Peru", "prompt": "The capital of Peru is", "target_new": "Rome", "ground_truth": ["Lima"],
    "rephrase_prompt": "Peru has the capital",
    "portability": {"Subject_Aliasing": [{"prompt": "The Andean state has the capital", "ground_truth": [["Rome"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "Peru lies in", "ground_truth": [["America", "the Americas"]]}]},
}  # fmt: skip
LAMA = {
    "uuid": "u",
    "predicate_id": "P36",
    "sub_label": "Peru",
    "obj_label": "Lima",
    "masked_sentences": ["Peru: [MASK]."],
}
PATTERNS = [{"pattern": f"{word} [X] [Y]."} for word in "abcd"]
NEURONS = {
    "format": "kn_lens.neurons", "version": 1, "meta": {"seed": 0},
    "neurons": {"P36/Peru/Lima": [[0, 3], [2, 5]], "P30/Peru/America": []},
}  # fmt: skip
SCORED = [[{"relation": "P36(capital)"}, {"ig_gold": [[0, 3, 0.5], [1, 2, 0.25]], "base": [[0, 1, 1.0]]}]] * 3
SYNTAX = {"UID": "number", "sentence_good": "The book lies here.", "sentence_bad": "The books lies here."}
BAGS = [{"th_bags": ["Peru has Lima."], "h_bags": ["Peru is large."]}]
STUDY = {
    "preset": "official", "stages": ["neurons"], "seeds": [0, 3], "memory": 1.5,
    "settings": {"limit": 5, "doses": [0.5, 2.0], "relations": ["P36"], "attr_threshold": 0.2, "max_moves": 5},
    "models": [
        {"model": "world-bert", "dtype": "float64", "tags": {"size": "small", "seed": 0}},
        {"model": "some/name", "name": "other", "checkpoint": 3000, "device": "cpu"},
    ],
    "facts": [{"source": "mine.jsonl", "name": "mine", "format": "jsonl", "templates": "templates.jsonl"}],
}  # fmt: skip


def toml(value: Any) -> str:
    """Return a JSON value as TOML, if TOML can express it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value) if isinstance(value, float) else json.dumps(value)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def facts_of(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Return a reader of facts that checks that there is at least one."""

    def call(path: Path) -> None:
        assert len(read(path)) > 0

    return call


def both(path: Path) -> None:
    kn.refine_released(path)
    kn.refine_released(path, metric="base", min_prompts=1)


def texts(path: Path) -> None:
    digest_of_texts(path)
    facts = [kn.Fact("Peru", "P36", "Lima")]
    corpus = corpus_of(path, facts, facts)
    assert all(isinstance(one, str) for one in corpus.sentences)


def study(path: Path) -> None:
    """Read a study and check that it reads back equal after writing."""
    config = kn.read_study(path)
    path.write_text(as_toml(config), encoding="utf-8")
    assert differences(config, kn.read_study(path)) == []


@dataclass(frozen=True)
class Reader:
    """A format: a valid file, the other files that it needs, and its reader.

    Attributes:
        name: of the file, in a folder of its own.
        valid: what it holds, or a function that makes it; JSON values are written as JSON, several as lines.
        read: called with the file, or with ``given``.
        beside: other files of the folder.
        given: what is named to the reader, where that is not the file.
    """

    name: str
    valid: Any
    read: Callable[[Path], Any]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    given: str | None = None

    @property
    def content(self) -> bytes:
        return self.written(self.valid() if callable(self.valid) else self.valid)

    def written(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        if self.name.endswith(".toml"):
            top = value.items() if isinstance(value, dict) else [("models", value)]
            return "".join(f"{json.dumps(key)} = {toml(inner)}\n" for key, inner in top).encode()
        return lines(*value) if self.name.endswith("l") and isinstance(value, list) else json.dumps(value).encode()


@cache
def edit_file() -> bytes:
    """Return the file of an edit; its model need not exist."""
    rows = torch.ones(2, 4)
    edit = kn.WeightEdit(
        neurons=kn.NeuronSet([(0, 1), (1, 2)]), old=rows, new=2 * rows,
        checkpoint=Checkpoint(name="a", architecture="b", n_layers=2, d_mlp=8, d_model=4, dtype="float32"),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        edit.save(f"{folder}/valid.safetensors")
        return Path(folder, "valid.safetensors").read_bytes()


def scores(path: Path) -> None:
    """Read a file of scores; a file that is accepted has the scores that were written, because of its digests."""
    assert torch.equal(kn.read_attribution(path, score_prompts()).scores.to_dense(), written_scores())


READERS = {
    "facts, JSON lines": Reader("facts.jsonl", FACTS, facts_of(kn.FactSet.from_jsonl)),
    "facts, CSV": Reader(
        "facts.csv", b'subject,relation,object,templates\nPeru,P36,Lima,"[""[X] [Y]""]"\n',
        facts_of(kn.FactSet.from_csv),
    ),
    "facts, released code": Reader(
        "data.json", {"P36": [[["Peru: [MASK].", "Lima", "P36(capital)"]]]}, facts_of(kn.FactSet.from_official)
    ),
    "facts, CounterFact": Reader("counterfact.json", [CASE], facts_of(kn.FactSet.from_counterfact)),
    "updates, CounterFact": Reader("updates.json", [UPDATE], kn.EditingData.from_counterfact),
    "updates, KnowEdit": Reader("knowedit.json", [KNOWEDIT], kn.EditingData.from_knowedit),
    "facts, LAMA": Reader("P36.jsonl", [LAMA], facts_of(kn.FactSet.from_lama)),
    "facts, ParaRel": Reader(
        "facts/P36.jsonl", [LAMA], facts_of(kn.FactSet.from_pararel), {"patterns/P36.jsonl": lines(*PATTERNS)}, "."
    ),
    "templates, ParaRel": Reader(
        "patterns/P36.jsonl", PATTERNS, facts_of(kn.FactSet.from_pararel), {"facts/P36.jsonl": lines(LAMA)}, "."
    ),
    "templates, LAMA": Reader("relations.jsonl", [{"relation": "P36", "template": "[X]: [Y]"}], read_patterns),
    "neurons, ours": Reader("neurons.json", NEURONS, kn.NeuronSet.read_many),
    "neurons, EleutherAI": Reader("results.json", {"u1": [[0, 3]], "u2": []}, kn.NeuronSet.read_many),
    "neurons, released code": Reader("kn_bag-P36.json", [[[0, 3, 0.5]], []], kn.NeuronSet.read_many),
    "scores, released code": Reader("P36.rlt.jsonl", [SCORED], both),
    "study.toml": Reader("study.toml", STUDY, study),
    "texts, plain": Reader("texts.txt", b"Peru has Lima. Peru is large.\nNothing.\n", texts),
    "texts, BingRel": Reader("P36.json", BAGS, texts, {"query_pairs.json": b'{"P36": [["Peru", "Lima"]]}'}, "."),
    "pairs of BingRel": Reader("query_pairs.json", {"P36": [["Peru", "Lima"]]}, texts, {"P36.json": lines(BAGS)}, "."),
    "minimal pairs": Reader("pairs.jsonl", [SYNTAX], read_pairs),
    "edits": Reader("edit.safetensors", edit_file, kn.WeightEdit.load),
    "scores, ours": Reader("scores.parquet", score_file, scores),
}  # fmt: skip


@pytest.fixture(params=READERS)
def kind(request):
    return request.param


@pytest.fixture
def read(kind, tmp_path):
    """Write a file of the kind with some content and read it; return the result, or None if it is refused."""
    reader = READERS[kind]
    for name, content in dict(reader.beside).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / reader.name
    path.parent.mkdir(exist_ok=True)
    named = path if reader.given is None else tmp_path / reader.given

    def tried(content: bytes) -> Any:
        path.write_bytes(content)
        return taken_or_refused(f"files: {kind}", lambda: reader.read(named) or True, named.name)

    return tried


def test_the_valid_files_are_read(kind, read):
    """The control of the tests below."""
    assert read(READERS[kind].content)


MODEL = "[[models]]\nmodel = "
FOUND = [
    ("neurons, ours", b'{"u": [[' + b"9" * 5000 + b", 1]]}"),
    ("scores, released code", json.dumps([[[SCORED[0][0], {"ig_gold": [[0, 1, float("nan")]]}]] * 3]).encode()[1:-1]),
    ("texts, BingRel", b"[" * 5000),
    ("texts, BingRel", b'[{"th_bags": "Peru has Lima.", "h_bags": []}]'),  # letters, taken for sentences
    ("pairs of BingRel", b"[3]"),
    ("pairs of BingRel", b'{"P36": 3}'),
    ("study.toml", b"models = " + b"[" * 5000),
    ("study.toml", f'{MODEL}"~nobody/x"\ncheckpoint = 3\nrevision = "a"'.encode()),
    ("study.toml", f'[settings]\ndoses = [{"9" * 400}]\n{MODEL}"a"'.encode()),
    ("study.toml", f'memory = {"9" * 400}\n{MODEL}"a"'.encode()),
    ("study.toml", f'memory = inf\n{MODEL}"a"'.encode()),
]
"""What was neither taken nor refused, or taken for something else, before it was found here."""


@pytest.mark.parametrize(("kind", "content"), FOUND)
def test_inputs_found_by_earlier_fuzzing_are_refused(kind, read, content):
    assert read(content) is None


@pytest.mark.parametrize("name", ["~nobody/x", "x" * 5000, "a\\u007fb", "a\\u2028b", "\U0001f600", "..", "/"])
def test_a_study_takes_any_name(name, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(f'{MODEL}"{name}"\nname = "{name}"\ntags = {{a = nan, b = -inf}}\n', encoding="utf-8")
    study(path)


@pytest.mark.parametrize("name", ["", ".", "missing", "a\0b", "x" * 5000, "~nobody/x", "/dev/null", "/proc/self/mem"])
def test_names_that_are_no_regular_files_are_refused(kind, name, tmp_path, monkeypatch):
    """The names include directories and devices."""
    monkeypatch.chdir(tmp_path)
    assert taken_or_refused(f"files: {kind}", lambda: READERS[kind].read(Path(name)) or True) is None


@fuzz(usually=40)
@given(content=st.binary(max_size=200) | st.lists(st.sampled_from(NASTY), max_size=3).map(b"".join))
def test_any_bytes_are_read_or_refused(read, content):
    read(content)


@fuzz(usually=40)
@given(value=JSON)
def test_any_json_is_read_or_refused(kind, read, value):
    read(READERS[kind].written(value))


@fuzz(usually=80)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(kind, read, data):
    read(data.draw(damaged(READERS[kind].content)))


@fuzz(usually=80)
@given(data=st.data())
def test_a_file_with_one_changed_value_is_read_or_refused(kind, read, data):
    reader = READERS[kind]
    if isinstance(reader.valid, bytes) or callable(reader.valid):
        return
    read(reader.written(data.draw(changed(reader.valid))))
