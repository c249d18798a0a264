"""A file of scores with valid digests is read as its rows say, or refused if they are impossible."""

import hashlib
import json
import math
from functools import cache
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.attribution.storage import KEY, KEY_DIGEST
from tests.reliability.made_scores import N_PROMPTS, score_file, score_prompts
from tests.reliability.tries import fuzz, taken_or_refused
from tests.tiny import D_MLP, N_LAYERS

NUMBERS = st.sampled_from([-(2**31), -1, 0, 1, 2, N_LAYERS, N_PROMPTS, D_MLP - 1, D_MLP, 2**31 - 1])
VALUES = st.floats(width=32) | st.sampled_from([0.0, math.nan, math.inf])
HEAD_VALUES = [None, True, -1, 0, 1, 3, 0.5, "", "x", [], {}, [[1]], {"a": None}]
"""No large numbers: of scores that are whole there is room made for as many neurons as the file says."""


@cache
def parts(keep):
    """Return the rows of a valid file, its schema and its metadata."""
    table = pq.read_table(BytesIO(score_file(keep)))
    head = json.loads(pq.read_metadata(BytesIO(score_file(keep))).metadata[KEY])
    return table.to_pylist(), table.schema.remove_metadata(), head


def read(path, keep, rows, head):
    """Write rows and metadata with valid digests and read them back; return None if they are refused."""
    text = json.dumps(head).encode()
    schema = parts(keep)[1].with_metadata({KEY: text, KEY_DIGEST: hashlib.sha256(text).hexdigest()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=5)
    return taken_or_refused(
        "files: scores, ours, with digests that fit", lambda: kn.read_attribution(path, score_prompts()), path.name
    )


def can_be(rows):
    """Return whether rows are possible: each prompt and layer once, neurons that exist in order, a score for each."""
    pairs = sorted((row["prompt"], row["layer"]) for row in rows)
    return pairs == [(prompt, layer) for prompt in range(N_PROMPTS) for layer in range(N_LAYERS)] and all(
        len(row["neuron"]) == len(row["score"])
        and row["neuron"] == sorted(set(row["neuron"]) & set(range(D_MLP)))
        and not any(map(math.isnan, row["score"]))
        and row["n_points"] >= 0
        for row in rows
    )


@st.composite
def rows_changed(draw, rows):
    """Draw rows with a few changes: a value replaced, or a row left out, repeated or moved."""
    rows = [dict(row) for row in rows]
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        change = draw(st.sampled_from(["value", "value", "value", "none", "twice", "moved"]))
        if change == "value":
            name = draw(st.sampled_from(list(rows[at])))
            whole = name in ("prompt", "layer", "n_points", "neuron")
            if name in ("neuron", "score"):
                values = list(rows[at][name])
                place = draw(st.integers(0, len(values)))
                rows[at][name] = [*values[:place], draw(NUMBERS if whole else VALUES), *values[place + 1 :]]
            else:
                rows[at][name] = draw(NUMBERS if whole else VALUES)
        elif change == "none" and len(rows) > 1:
            del rows[at]
        else:
            row = rows[at] if change == "twice" else rows.pop(at)
            rows.insert(draw(st.integers(0, len(rows))), row)
    return rows


@pytest.mark.parametrize("keep", [None, 0.5])
@fuzz(usually=60, share=0.5)
@given(data=st.data())
def test_changed_rows_are_read_or_refused(tmp_path, keep, data):
    rows, _, head = parts(keep)
    rows = data.draw(rows_changed(rows))
    found = read(tmp_path / "scores.parquet", keep, rows, head)
    assert (found is not None) == can_be(rows)
    if found is not None:
        said = torch.full(found.scores.shape, math.nan if keep is None else 0.0, dtype=found.scores.dtype)
        for row in rows:
            said[row["prompt"], row["layer"], row["neuron"]] = torch.tensor(row["score"], dtype=said.dtype)
        torch.testing.assert_close(found.scores.to_dense(), said, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("keep", [None, 0.5])
@fuzz(usually=60, share=0.5)
@given(data=st.data())
def test_changed_metadata_are_read_or_refused(tmp_path, keep, data):
    rows, _, head = parts(keep)
    name, value = data.draw(st.sampled_from(sorted(head))), data.draw(st.sampled_from(HEAD_VALUES))
    lacking = {key: head[key] for key in head if key != name}
    head = data.draw(st.sampled_from([value, lacking, {**head, name: value}, {**head, name: value}]))
    found = read(tmp_path / "scores.parquet", keep, rows, head)
    if found is not None:
        assert found.scores.shape == (N_PROMPTS, N_LAYERS, head["d_mlp"])
        assert all(isinstance(getattr(found, name), str) for name in ("method", "output", "quadrature"))
