"""With ``HF_HUB_OFFLINE=1`` nothing uses the network; a separate process stops and reports every attempt."""

import os
import subprocess
import sys
import textwrap

from tests.reliability.tries import BY_HAND, TRIED
from tests.tiny import tiny_checkpoint

SCRIPT = """
    import sys

    requests, tried = [], []

    def watch(event, args):
        # The interpreter tells of every socket that Python code of any library uses; those of Unix are no network.
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            if isinstance(args[1], tuple):
                requests.append((event, args[1]))
                raise ConnectionRefusedError("the network is out of bounds")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            requests.append((event, args))
            raise ConnectionRefusedError("the network is out of bounds")

    sys.addaudithook(watch)

    import kn_lens as kn
    from kn_lens.cli import main

    def load(name):
        tried.append(name)
        return kn.load_model(name)

    def command(*words):
        tried.append(words)
        sys.argv = ["kn-lens", *words]
        try:
            main()
        except SystemExit as error:
            return error.code

    folder, checkpoint = sys.argv[1:]
    for name in ("world-bert", "world-gpt2", "world-bert-plain", checkpoint):
        load(name)
    for name in ("google-bert/bert-base-cased", "gpt2", "no-such-model"):
        try:
            load(name)
        except kn.UnsupportedModelError as error:
            assert "HF_HUB_OFFLINE" in str(error), error
        else:
            raise AssertionError(name)
    run = f"{folder}/run"
    some = ["--limit", "1", "--set", "n_resamples=2", "--set", "quadrature=left", "--set", "n_steps=2"]
    relations = ["--relation", "P36", "--relation", "P30"]
    assert command("models", "--json") == 0
    assert not BY_HAND or command("demo") == 0
    assert command("find", "--subject", "Ireland", "--relation", "P36", "--out", f"{folder}/found.json") == 0
    assert command("reproduce", "--out", run, "--stage", "effects", "--stage", "answers", *some, *relations) == 0
    assert command("report", run) == 0
    assert command("find", "--model", "google-bert/bert-base-cased") == 2
    assert not requests, requests
    print("nothing was asked for by", len(tried))
"""


def test_no_call_opens_a_network_connection(tmp_path):
    checkpoint = tiny_checkpoint("BertForMaskedLM", tmp_path / "tiny")
    script = textwrap.dedent(SCRIPT).replace("BY_HAND", str(BY_HAND))  # the demo takes a minute
    command = [sys.executable, "-c", script, str(tmp_path), str(checkpoint)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    said, _, tried = done.stdout.rpartition("nothing was asked for by ")
    assert done.returncode == 0 and said, done.stderr[-3000:]
    TRIED["loads and commands without network", "to the end"] += int(tried)
