"""The Python code of the README runs unchanged."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_every_block_of_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["fact"].object == "Dublin" and len(names["neurons"]) > 0
    assert names["logits"].shape[0] == names["prompts"].n_rows
