"""Edit files: edits read back bit for bit; any other file is an error, before a weight is written."""

import json
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import kn_lens as kn
from kn_lens.edits.files import canonical, digest_of
from tests.tiny import COUNTRIES, loaded, tiny_checkpoint, tiny_model

FACT = kn.Fact("Ireland", "P36", COUNTRIES["Ireland"], ("The capital of [X] is [Y].",))
NEURONS = kn.NeuronSet([(0, 3), (1, 0), (2, 23)])


def edit_of(model):
    return kn.update_fact(model, FACT, "Tokyo", NEURONS, allow_unknown=True)


def logits(model):
    tokens = torch.arange(8, 20)[None]
    with torch.no_grad():
        return kn.host_of(model).logits(tokens, torch.ones_like(tokens))


@cache
def written():
    """An edit, and the bytes of its file."""
    edit = edit_of(loaded())
    with TemporaryDirectory() as directory:
        edit.save(Path(directory) / "edit.safetensors")
        return edit, (Path(directory) / "edit.safetensors").read_bytes()


@cache
def logits_before():
    """The logits of the model before a test reads a file."""
    return logits(loaded())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokyo.safetensors"


@pytest.fixture
def parts(path):
    """Return the tensors of a written edit and the document in its metadata."""
    edit_of(loaded()).save(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["kn_lens"])


def forge(path, tensors, document, *, signed=True):
    """Write a file with other contents and a valid digest."""
    if signed:
        rest = {key: value for key, value in document.items() if key not in ("format", "version", "digest")}
        document = document | {"digest": digest_of(tensors, rest)}
    save_file(tensors, path, {"kn_lens": canonical(document)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_an_edit_reads_back_bit_for_bit_and_acts_the_same(architecture, dtype, tmp_path, path):
    checkpoint = tiny_checkpoint(architecture, tmp_path / "model", dtype)
    model = kn.load_model(checkpoint, dtype=dtype, device="cpu")
    edit = edit_of(model)
    edit.save(path)
    again = kn.WeightEdit.load(path)
    assert (again.neurons, again.checkpoint, again.why) == (edit.neurons, edit.checkpoint, edit.why)
    assert again.digest == edit.digest and again.row_hash == edit.row_hash
    for name in ("old", "new"):
        assert torch.equal(getattr(again, name).view(torch.uint8), getattr(edit, name).view(torch.uint8))
    with edit.applied(model):
        expected = logits(model)
    fresh = kn.load_model(checkpoint, dtype=dtype, device="cpu")
    with again.applied(fresh):
        assert torch.equal(logits(fresh), expected)


def test_a_file_is_small_plain_and_the_same_each_time(path, tmp_path):
    edit_of(loaded()).save(path)
    edit_of(tiny_model()).save(tmp_path / "again.safetensors")
    assert path.stat().st_size < 4096
    again = kn.WeightEdit.load(tmp_path / "again.safetensors")
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["kn_lens"])
    assert document["format"] == "kn_lens.edit" and document["why"][0]["new_object"] == "Tokyo"
    # The two models differ in the directory that they were read from alone.
    assert kn.WeightEdit.load(path).row_hash == again.row_hash
    edit_of(loaded()).save(tmp_path / "third.safetensors")
    assert (tmp_path / "third.safetensors").read_bytes() == path.read_bytes()


def test_different_edits_have_different_digests():
    edit = edit_of(loaded())
    other = kn.update_fact(loaded(), FACT, "Tokyo", NEURONS, lambdas=(1, 7), allow_unknown=True)
    assert edit.row_hash == other.row_hash
    moved = replace(edit, neurons=kn.NeuronSet([(0, 4), (1, 0), (2, 23)]))  # equal values in another row
    of_other_rows = (edit_of(tiny_model(seed=1)), edit.restricted_to([(0, 3)]), moved)
    assert len({edit.row_hash, *(other_rows.row_hash for other_rows in of_other_rows)}) == 4
    assert len({edit.digest, other.digest, edit.scaled(1).digest, edit.restricted_to([(0, 3)]).digest}) == 4


def test_a_failed_write_leaves_the_old_file_or_none(path, monkeypatch):
    edit = edit_of(loaded())
    with pytest.raises(kn.DataError, match="cannot be written: No such file"):
        edit.save(path.parent / "nowhere" / "edit.safetensors")
    path.write_bytes(b"as it was")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(kn.DataError, match="No space left"):
        edit.save(path)
    assert path.read_bytes() == b"as it was" and list(path.parent.iterdir()) == [path]


# --- damaged and forged files ---------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused(path, data):
    """A damaged file is an error; only changed blanks of the header may give the same edit."""
    edit, content = written()
    content, before = bytearray(content), logits_before()
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    kind = data.draw(st.sampled_from(["cut", "replace", "insert", "delete"]), label="kind")
    inserted = data.draw(st.binary(min_size=1, max_size=12), label="bytes")
    if kind == "cut":
        del content[at:]
    else:
        content[at : at + (0 if kind == "insert" else len(inserted))] = b"" if kind == "delete" else inserted
    path.write_bytes(content)
    try:
        again = kn.WeightEdit.load(path)
    except kn.DataError as error:
        assert str(path) in str(error)
    else:
        assert again.digest == edit.digest
    assert torch.equal(before, logits(loaded()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
@example(content=b"")
@example(content=struct.pack("<Q", 2**62) + b"{}")
@example(content=struct.pack("<Q", 2) + b"{}")
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(kn.DataError, match=path.name):
        kn.WeightEdit.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_documents_are_refused_or_harmless(path, parts, data):
    """Any document with a valid digest is an error, or an edit that is applied or refused."""
    tensors, document = parts
    key = data.draw(st.sampled_from([*document, *document["checkpoint"]]), label="key")
    value = data.draw(JSON, label="value")
    target = document if key in document else document["checkpoint"]
    was, target[key] = target[key], value
    model = loaded()
    before = logits_before()
    try:
        forge(path, tensors, document)
    except ValueError:  # NaN cannot be written
        return
    finally:
        target[key] = was
    try:
        edit = kn.WeightEdit.load(path)
    except kn.DataError:
        return
    str(edit), repr(edit)
    try:
        with edit.applied(model):
            pass
    except kn.EditError:
        pass
    assert torch.equal(before, logits(model))


def rows_like(n, d=16, value=0.0):
    return torch.full((n, d), value, dtype=torch.float64)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"neurons": torch.tensor([[0, 3], [2, 23], [1, 0]])}, "not in order of layer and index"),
        ({"neurons": torch.tensor([[0, 3], [0, 3], [1, 0]])}, "not in order of layer and index"),
        ({"neurons": torch.tensor([[0, 3], [1, 0], [2, 24]])}, "the row L2N24; .* 3 layers of 24 x 16"),
        ({"neurons": torch.tensor([[0, -3], [1, 0], [2, 2]])}, "expected a whole number from 0"),
        ({"neurons": torch.tensor([[0.0, 3.0], [1, 0], [2, 2]])}, "whole number"),
        ({"neurons": torch.zeros(3, 4, dtype=torch.int64)}, "pair"),
        ({"neurons": torch.zeros(3, 3, dtype=torch.int64)}, "not in order"),
        ({"neurons": torch.zeros(0, 2, dtype=torch.int64), "old": rows_like(0), "new": rows_like(0)}, "empty"),
        ({"new": rows_like(3, value=float("nan"))}, "not finite"),
        ({"new": rows_like(3, 15)}, r"\[3, 15\] of float64; expected \[3, 16\]"),
        ({"new": rows_like(4)}, r"\[4, 16\] of float64"),
        ({"new": rows_like(3).float()}, "float32; expected .* float64"),
        ({"new": rows_like(3).long()}, "int64; expected .* float64"),
        ({"new": torch.tensor(1.0)}, "each a table"),
        ({"more": rows_like(3)}, "expected neurons, new and old"),
        ({"old": None}, "expected neurons, new and old"),
    ],
)
def test_forged_tensors_are_refused(path, parts, change, message):
    tensors, document = parts
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    try:
        forge(path, changed, document)
    except RuntimeError:  # a tensor without axes has no bytes to digest
        forge(path, changed, document, signed=False)
    with pytest.raises(kn.DataError, match=message):
        kn.WeightEdit.load(path)


def test_forged_rows_of_whole_numbers_are_refused(path, parts):
    tensors, document = parts
    document["checkpoint"]["dtype"] = "int64"
    forge(path, {name: tensor.long() for name, tensor in tensors.items()}, document)
    with pytest.raises(kn.DataError, match=r"The old rows are .* int64"):
        kn.WeightEdit.load(path)


def test_a_changed_row_or_reason_is_detected(path, parts):
    tensors, document = parts
    forge(path, tensors | {"new": tensors["new"] + 1e-3}, document, signed=False)
    with pytest.raises(kn.DataError, match=r"not as it was written.* damaged or changed"):
        kn.WeightEdit.load(path)
    document["why"][0]["new_object"] = "Lima"
    forge(path, tensors, document, signed=False)
    with pytest.raises(kn.DataError, match="not as it was written"):
        kn.WeightEdit.load(path)


def test_files_of_another_format_or_version_are_refused_by_name(path, parts):
    tensors, document = parts
    forge(path, tensors, document | {"version": 2})
    with pytest.raises(kn.DataError, match=r"'kn_lens.edit' version 2; this version of kn_lens reads .* version 1"):
        kn.WeightEdit.load(path)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(kn.DataError, match=r"holds no edit; expected a file written by WeightEdit\.save"):
        kn.WeightEdit.load(path)
    with pytest.raises(kn.DataError, match=r"no file .*tokio.safetensors. Did you mean 'tokyo.safetensors'"):
        kn.WeightEdit.load(path.with_name("tokio.safetensors"))


def test_an_edit_of_another_model_is_refused_before_a_weight_changes(path):
    edit_of(loaded()).save(path)
    other = tiny_model(seed=1)
    before = logits(other)
    with pytest.raises(kn.EditError, match="3 of 3 rows"):
        kn.WeightEdit.load(path).apply_(other)
    with pytest.raises(kn.EditError, match=r"BertForMaskedLM.* has GPT2LMHeadModel"):
        kn.WeightEdit.load(path).apply_(loaded("GPT2LMHeadModel"))
    assert torch.equal(before, logits(other))
