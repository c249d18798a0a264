"""transformers: an exported edit loads without kn_lens and TransformerLens."""

import json
import subprocess
import sys

import torch

import kn_lens as kn

ALONE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
logits = model(**tokenizer(sys.argv[2], return_tensors="pt")).logits[0, -1]
assert not {"kn_lens", "transformer_lens"} & {*sys.modules}
print(json.dumps(logits.tolist()))
"""


def test_an_exported_edit_loads_without_kn_lens(model, fact, prompts, neurons, tmp_path):
    edit = kn.update_fact(model, fact, new_object="Tokyo", neurons=neurons)
    where = kn.export(model, edit, tmp_path / "edited")
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, where, prompts.text[0]], capture_output=True, text=True, check=True
    )
    one = prompts.select(torch.tensor([0]))
    with edit.applied(model):
        expected = model(one.tokens, attention_mask=one.attention_mask)[0, int(one.read_pos)]
    found = torch.tensor(json.loads(alone.stdout), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
