"""The command line: streams, exit codes, help and errors are as promised."""

import importlib
import io
import json
import queue
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from functools import reduce

import pytest
import typer

import kn_lens as kn
from kn_lens.cli import _app, _terminal, main
from kn_lens.cli._tables import table
from kn_lens.cli._terminal import EscapingConsole
from tests.pages import parse

# --- the process -----------------------------------------------------------------------------------------

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def run_process(*args):
    return subprocess.Popen([sys.executable, "-m", "kn_lens.cli", *map(str, args)], **PIPES)


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv[1:] = ['find', '--help']\n"
        "from kn_lens.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: assert error.code == 0\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert all(name in done.stdout for name in ("--attr-threshold", "--by-relation", "integrated_gradients"))


def test_results_go_to_stdout_and_messages_to_stderr(checkpoints, facts_file):
    process = run_process("find", "-m", checkpoints["bert"], "-f", facts_file, "--limit", 3, "--json")
    out, err = process.communicate()
    said = [line for line in err.splitlines() if not line.endswith(" so far")]  # on a busy machine it takes long
    assert (process.returncode, said) == (0, [])
    relations = [fact["relation"] for fact in json.loads(out)["facts"]]
    assert relations == 3 * ["P36"] + 3 * ["P1376"]  # the limit is that of each relation


def test_a_user_error_is_one_line_and_exit_code_2(facts_file):
    process = run_process("find", "-f", facts_file, "-r", "P37")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("kn-lens: error: No relation 'P37'; there are P36, P1376.") and err.count("\n") == 1


def test_interrupting_ends_in_one_line_and_writes_nothing(checkpoints, facts_file, tmp_path):
    arguments = ["find", "-m", checkpoints["bert"], "-f", facts_file, "-o", str(tmp_path / "neurons.json")]
    script = (
        "import sys, time\n"
        "from kn_lens import attribution, cli\n"
        "from kn_lens.cli import _terminal\n"
        "_terminal.FIRST_LINE = 1e6\n"
        "attribution.attribute_in_parts = lambda *args, **how: (print('at work', flush=True), time.sleep(60))\n"
        f"sys.argv[1:] = {arguments}\n"
        "cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", script], **PIPES) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "kn-lens: interrupted; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


def test_interrupt_wrapped_by_an_import_is_still_an_interrupt(cli, monkeypatch):
    def importing(*args, **kwargs):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("kn_lens.cli.data.read_facts", importing)
    assert cli("data", "read", "world") == (130, "", "kn-lens: interrupted; nothing was written.\n")


def test_closed_pipe_ends_the_command_without_a_message():
    with run_process("data", "read", "world") as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


# --- help and errors -------------------------------------------------------------------------------------


def commands_in(command, words=()):
    """The words of every command and group of commands."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_in(inner, (*words, name))


def test_every_command_has_help(cli):
    every = list(commands_in(typer.main.get_command(_app.app)))
    names = {"compare", "data", "demo", "edit", "find", "intervene", "models", "report", "reproduce", "study"}
    assert {words[0] for words in every if words} == names
    for words in every:
        code, out, err = cli(*words, "--help")
        assert (code, err) == (0, "") and f"Usage: {' '.join(('kn-lens', *words))} " in out
        assert "<" not in out.replace("<=", ""), "no type of Python is shown"
    for group in ((), ("data",), ("edit",)):
        code, out, err = cli(*group)
        assert (code, err) == (0, "") and out.strip() == cli(*group, "--help")[1].strip()
    assert cli("--version")[1] == f"kn-lens {kn.__version__}\n"


@pytest.mark.parametrize("columns", [60, 100])
def test_help_is_whole_at_any_width_and_has_an_example(cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in commands_in(typer.main.get_command(_app.app)):
        command = reduce(lambda group, name: group.commands[name], words, typer.main.get_command(_app.app))
        out = cli(*words, "--help")[1]
        assert max(map(len, out.splitlines())) <= columns
        assert "…" not in out
        for parameter in command.params:
            assert all(name in out.split() or f"{name}," in out.split() for name in parameter.opts if "-" in name)
            assert " ".join(parameter.help.split()) in " ".join(out.split())
        example = out.partition("  Example:\n")[2].partition("\n\n")[0]
        for line in textwrap.dedent(example).replace("\\\n", " ").splitlines():
            parse(line)
        assert "kn-lens " in example


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("frobnicate", "No such command 'frobnicate'"),
        ("find --bogus", "No such option: --bogus"),
        ("find --method ablaton", "'ablaton' is not one of"),
        ("find --method ablaton", "Did you mean 'ablation'?"),
        ("find --share-threshold 1.5", "--share-threshold"),
        ("find --n-steps 0 --quadrature left", "--n-steps"),
        ("find --n-steps 5", "--n-steps is for a fixed rule"),
        ("find --preset paper --quadrature left", "--preset paper fixes the quadrature"),
        ("find --tolerance 0", "--tolerance 0.0; expected a positive number"),
        ("find --target logit_diff", "--contrast"),
        ("find --split held_out -f {facts}", "--split held_out is for the embedded facts"),
        ("find --templates x -f world", "--templates is for pararel, lama, jsonl and csv"),
        ("find -f nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("find -f {folder}/odd.txt", "--format"),
        ("find -f {facts} -r P36 -s Irelnd", "Did you mean 'Ireland'?"),
        ("find -f {facts} -m world-brt", "Unknown model 'world-brt'"),
        ("find -f {facts} -m wrld-bert", "Did you mean 'world-bert'?"),
        ("find -f {facts} -m world-brt -o {folder}/no/such.json", "there is no directory"),
        ("find -f {facts} -m world-brt -o {folder}", "is a directory"),
        ("find -f {facts} -m world-brt -o {facts}", "is an input file"),
        ("edit erase -f {facts} -n {folder}/beyond.json -r P36 -o {facts}", "is an input file"),
        ("edit update -f {facts} -n {folder}/beyond.json --object Rome -o {facts}", "is an input file"),
        ("edit apply {folder}/none.safetensors -f {facts} -o {facts}", "is an input file"),
        ("find -f {facts} -m {bert} --min-prompts 5", "fact with fewer than 5 prompts: 64"),
        ("find -f {facts} -m {gpt2} --min-prompts 4", "fact with fewer than 4 prompts: 48"),
        ("intervene -f {facts}", "Missing option '--neurons'"),
        ("intervene -f {facts} -n {folder}/none.json", "There is no file"),
        ("intervene -f {facts} -n {facts}", "is not JSON"),
        ("intervene -f {facts} -n {folder}/other.json", "P36/Atlantis/Poseidonis"),
        ("intervene -f {facts} -n {folder}/beyond.json -m {bert}", "has no neuron L99N0"),
        ("intervene -f {facts} -n {folder}/beyond.json --suppress --set-to 1", "--suppress and --set-to exclude"),
        ("intervene -f {facts} -n {folder}/beyond.json --amplify nan", "finite"),
        ("intervene -f {facts} -n {folder}/beyond.json -o {folder}/beyond.json", "is an input file"),
        ("intervene -f {facts} -n {folder}/beyond.json -o {facts}", "is an input file"),
        ("intervene -f {facts} -n {folder}/beyond.json -r P1376", "none of them among the 8 chosen"),
        ("demo --fact Ireland", "expected SUBJECT/RELATION"),
        ("demo --fact Irelnd/P36", "Did you mean 'Ireland'?"),
        ("data read {folder}/broken.jsonl", "broken.jsonl:2: not JSON"),
        ("data convert {facts} --out {facts}", "is an input file"),
    ],
)
def test_invalid_input_is_one_clear_line(cli, folder, checkpoints, facts_file, arguments, message):
    (folder / "broken.jsonl").write_text('{"subject": "Ireland", "relation": "P36", "object": "Dublin"}\n{"subj')
    (folder / "odd.txt").write_text("")
    kn.NeuronSet.write_many(folder / "other.json", {"P36/Atlantis/Poseidonis": kn.NeuronSet([(0, 0)])})
    kn.NeuronSet.write_many(folder / "beyond.json", {"P36/Ireland/Dublin": kn.NeuronSet([(99, 0)])})
    names = {"folder": folder, "facts": facts_file, **checkpoints}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, out, err = cli(*(argument.format(**names) for argument in arguments.split()))
    assert (code, out) == (2, "")
    assert err.startswith("kn-lens: error: ") and err.count("\n") == 1 and message in err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


# --- the terminal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terminal", "slow"), [(True, True), (True, False), (False, True)])
def test_progress_bar_appears_on_a_terminal_after_a_while(monkeypatch, terminal, slow):
    written = io.StringIO()
    monkeypatch.setattr(_terminal, "err", EscapingConsole(file=written, force_terminal=terminal, width=100, height=40))
    monkeypatch.setattr(_terminal, "SHOW_AFTER", 0.01 if slow else 60)
    with _terminal.show_progress("Attributing", unit="prompts") as show:
        for done in range(1, 5):
            show(done, 4)
            time.sleep(0.05)
    assert ("Attributing" in written.getvalue()) == (terminal and slow)
    assert ("prompts/s" in written.getvalue()) == (terminal and slow)


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_is_reported_line_by_line_without_a_terminal(monkeypatch, terminal):
    now, written = 1000.0, io.StringIO()
    monkeypatch.setattr(_terminal.time, "perf_counter", lambda: now)
    monkeypatch.setattr(_terminal, "err", EscapingConsole(file=written, force_terminal=terminal, width=40, height=40))
    monkeypatch.setattr(_terminal, "SHOW_AFTER", 60)
    pauses, signals = [], queue.Queue()
    monkeypatch.setattr(_terminal, "Event", lambda: Clock(pauses, signals))

    def lines_after(seconds):
        nonlocal now
        now += seconds
        if terminal:
            return ""
        before = len(written.getvalue())
        signals.put(False)
        signals.join()
        return written.getvalue()[before:]

    with _terminal.status_lines():
        assert lines_after(5) == ("" if terminal else "kn-lens: working: 5 s so far\n")
        with _terminal.show_progress("Attributing\x1b[2J", unit="prompts") as show:
            assert lines_after(30) == ("" if terminal else "kn-lens: Attributing\\x1b[2J: 30 s so far\n")
            show(300, 3000)
            said = "kn-lens: Attributing\\x1b[2J: 300 of 3,000 prompts, 5/s, 9 min left, 60 s so far\n"
            assert lines_after(30) == ("" if terminal else said)
            show(2700, 3000, "Nearly there")
            assert lines_after(30)[:50] == ("" if terminal else "kn-lens: Nearly there: 2,700 of 3,000 prompts, 30/")
        assert lines_after(30) == ("" if terminal else "kn-lens: working: 125 s so far\n".replace("125 s", "2 min"))
    assert pauses == ([] if terminal else [5.0, 30.0, 30.0, 30.0, 30.0, 30.0])


class Clock:
    """An event that waits for the test instead of a timeout."""

    def __init__(self, pauses, signals):
        self.pauses, self.signals, self.waited = pauses, signals, False

    def wait(self, seconds):
        if self.waited:
            self.signals.task_done()
        self.pauses.append(seconds)
        self.waited = True
        return self.signals.get()

    def set(self):
        self.signals.put(True)


@pytest.mark.parametrize(
    ("arguments", "slow", "description"),
    [
        ("data read world", "kn_lens.cli.data.read_facts", "working"),
        ("demo", "kn_lens.hosts.load_model", "Loading world-gpt2"),
        ("find", "kn_lens.hosts.load_model", "Loading world-bert"),
        ("find --json", "kn_lens.hosts.load_model", "Loading world-bert"),
        ("reproduce --out none", "kn_lens.hosts.load_model", "Loading world-bert"),
        ("reproduce --out none --dry-run", "kn_lens.hosts.load_model", "Loading world-bert"),
        ("report none", "kn_lens.reports.report.write_report", "Writing the report"),
        ("compare a=none b=none", "kn_lens.reports.compare.comparison.compare_runs", "Comparing"),
        ("edit show none", "kn_lens.cli.edit._read", "working"),
        ("models", "kn_lens.cli.models.embedded", "working"),
    ],
)
def test_every_long_step_reports_progress(monkeypatch, capsys, arguments, slow, description):
    importlib.import_module("kn_lens.runs.workers.engine")  # else it could keep what replaces load_model here
    said = [""]

    def takes_long(*args, **how):
        deadline = time.monotonic() + 20
        while f"kn-lens: {description}: " not in said[0] and time.monotonic() < deadline:
            time.sleep(0.01)
            said[0] += capsys.readouterr().err
        raise kn.errors.DataError("enough")

    monkeypatch.setattr(_terminal, "FIRST_LINE", 0.05)
    monkeypatch.setattr(_terminal, "LINE_EVERY", 0.05)
    monkeypatch.setattr("kn_lens.cli._prepare_process", lambda: None)
    monkeypatch.setattr(sys, "argv", ["kn-lens", *arguments.split()])
    monkeypatch.setattr(slow, takes_long)
    with pytest.raises(SystemExit), warnings.catch_warnings():
        main()
    assert f"kn-lens: {description}: " in said[0]
    assert capsys.readouterr().out == ""


def test_numbers_outside_json_become_null(capsys):
    _terminal.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": None}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


# --- tables ----------------------------------------------------------------------------------------------

NAMES = ("world-bert-plain", "mistralai/Mistral-Small-3.1-24B-Base-2503", "a", "The capital of Ireland is [MASK].")
VALUES = ("+12.3% [+10.1, +14.5]", "0.812", "-", "1,234,567")


def printed(table, columns, *, terminal):
    written = io.StringIO()
    EscapingConsole(file=written, force_terminal=terminal, width=columns, height=40, color_system=None).print(table)
    return written.getvalue().splitlines()


def wide_table():
    rows = table(
        "A heading that is longer than forty columns, for all models", "model", "value", "n", right=("value", "n")
    )
    for name in NAMES:
        for value in VALUES:
            rows.add_row(name, value, str(len(name)))
    return rows


def test_a_piped_table_is_neither_wrapped_nor_cut():
    lines = printed(wide_table(), 40, terminal=False)
    assert lines[0] == "A heading that is longer than forty columns, for all models"
    assert [line.split() for line in lines[4 : 4 + len(NAMES) * len(VALUES)]] == [
        [*name.split(), *value.split(), str(len(name))] for name in NAMES for value in VALUES
    ]


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 100])
def test_a_table_is_whole_on_a_narrow_terminal(columns):
    lines = printed(wide_table(), columns, terminal=True)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= columns and "…" not in text
    assert all(text.count(value) >= len(NAMES) for value in VALUES) or columns < 30
    letters = sorted("".join(text.split()))
    for letter in set("".join(NAMES + VALUES)) - {" "}:
        expected = sum(name.count(letter) * len(VALUES) for name in NAMES)
        expected += sum(value.count(letter) * len(NAMES) for value in VALUES)
        assert letters.count(letter) >= expected


def test_paragraphs_have_no_line_breaks_where_there_is_no_terminal(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = cli("models")[1].splitlines()
    assert any(line.startswith("constructed: ") and line.endswith("trained templates.") for line in lines)
    assert any("mistralai/Mistral-Small-3.1-24B-Base-2503" in line for line in lines)


@pytest.mark.parametrize("columns", [60, 100])
def test_models_are_readable_on_a_terminal(cli, terminal, columns):
    terminal(columns)
    lines = cli("models")[1].splitlines()
    commands = [line for line in lines if "pip install" in line]
    assert max(len(line) for line in lines if "nstall" not in line) <= columns and "…" not in "".join(lines)
    assert len(commands) == 1, "a command is one line, as it is copied"
