"""Arbitrary command lines: an exit code and, for an error, one line; never a traceback."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from tests.reliability.commands import COMMANDS
from tests.reliability.tries import TRIED, fuzz, timed

MODELS = ["./none", "~nobody/x", "world-brt", "", ".", "x" * 5000, "-"]
"""None is there: what is tried is what comes before a model runs."""
VALUES = [
    *("", " ", "-1", "0", "1", "3", "0.5", "nan", "inf", "-inf", "1e400", "9" * 400, "9" * 5000, "x", "x" * 5000),
    *(
        "~nobody/x",
        "P36",
        "world",
        "missing.jsonl",
        "facts.jsonl",
        "facts.csv",
        "study.toml",
        "neurons.json",
        "run",
        ".",
    ),
    *("none/such", "a=b", "doses=[1e999]", "doses=[]", "n_steps=0", "tolerance=" + "9" * 400, "limit=null", "--", "-"),
    *("texts=~nobody", "syntax=" + "x" * 5000, "relations=[[]]", "\udcff", "P36,P30", "Ireland", "Ireland/P36", "html"),
    *(
        "effects",
        "memory://x",
        "nosuch://x",
        "none::memory://x",
        "L1N2",
        "a=run",
        "[X]",
        "[/b]",
        "\N{PILE OF POO}",
        "%s",
        "{}",
    ),
]


@st.composite
def command_lines(draw) -> list[str]:
    """Draw a command with some of its arguments and options, mostly known ones, and any values."""
    words = draw(st.sampled_from(sorted(COMMANDS)))
    given_words, options = [], []
    for parameter in COMMANDS[words].params:
        value = draw(st.sampled_from(VALUES))
        if parameter.param_type_name == "argument":
            given_words += draw(st.sampled_from([[value], [value], [value], [], [value, value]]))
        elif "--model" in parameter.opts:
            options += ["--model", draw(st.sampled_from(MODELS))]
        elif draw(st.integers(0, 3)) == 0 and "--help" not in parameter.opts:
            options += [parameter.opts[0]] if getattr(parameter, "is_flag", False) else [parameter.opts[0], value]
    return [*words, *given_words, *options]


def files_in(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


@fuzz(usually=100)
@given(line=command_lines())
@example(line=["reproduce", "--out", "run", "--set", "tolerance=" + "9" * 400, "--model", "./none"])
@example(line=["reproduce", "--out", "run", "--set", "doses=" + "[" * 5000, "--model", "./none"])
@example(line=["find", "--model", "~nobody/x"])
@example(line=["find", "--model", "x" * 5000])
@example(line=["data", "read", "x" * 5000 + ".jsonl"])
@example(line=["data", "read", "x" * 5000])
@example(line=["data", "convert", "world", "--out", "x" * 5000])
def test_any_command_line_ends_with_a_documented_exit_code_and_message(cli, line, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    (work / "facts.jsonl").write_text(
        '{"subject": "Peru", "relation": "P36", "object": "Lima", "template": "[X] [Y]"}\n'
    )
    (work / "study.toml").write_text('[[models]]\nmodel = "./none"\n')
    (work / "neurons.json").write_text('{"P36/Peru/Lima": [[0, 1]]}')
    with timed("command lines"):
        code, out, err = cli(*line)
    assert code in (0, 1, 2), (code, err)
    assert "Traceback" not in out + err
    if code == 2:
        assert err.splitlines()[-1].startswith("kn-lens: error: "), err
    assert {path.parts[0] for path in files_in(tmp_path)} == {"work"}
    TRIED["command lines", {0: "done", 1: "some runs failed", 2: "refused"}[code]] += 1


def test_names_that_look_like_markup_are_shown_literally(cli, tmp_path):
    """Names may look like the markup of the library that draws tables."""
    names = ["[/b]", "[red]", "[link=x]y", ":smile:", "12:00:00"]
    lines = [
        json.dumps({"subject": "Peru", "relation": name, "object": "Lima", "template": "[X] [Y]"}) for name in names
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    code, out, err = cli("data", "read", tmp_path / "facts.jsonl")
    assert code == 0 and all(name in out for name in names), err
    code, out, err = cli("data", "convert", tmp_path / "facts.jsonl", "--out", tmp_path / "[bold].jsonl")
    assert code == 0 and "[bold].jsonl" in out, err
