"""A study on several workers, one of which is killed: the files are those of the in-process engine."""

import psutil

from kn_lens.runs.studies.study import run_study
from tests.tiny_runs import contents, tiny_facts, tiny_study


class KillOneWorker:
    """A watcher that kills one worker process once the first shard of attributions is written."""

    def __init__(self, worker_processes):
        self.worker_processes = worker_processes
        self.killed, self.written = [], []

    def __call__(self, job, state):
        if state is None or not state.finished:
            return
        self.written.append((job.name, state.stage.name, state.shard))
        if state.stage.name == "attributions" and not self.killed:
            process = self.worker_processes()[0]
            self.killed.append(process.pid)
            process.kill()


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def check_a_killed_worker_changes_nothing(models, folder, engine, worker_processes):
    """Run a study in this process and on another engine, one of whose workers is killed, and compare all files."""
    config = tiny_study(models, "bert", "empty", "gpt2", stages=("effects",))
    facts = {"tiny": tiny_facts(2)}
    expected = run_study(config, facts, folder / "in-process")
    watch = KillOneWorker(worker_processes)
    rows = run_study(config, facts, folder / "engine", engine=engine, watch=watch)
    assert len(watch.killed) == 1 and not is_alive(watch.killed[0])
    assert len(set(watch.written)) == len(watch.written)  # no shard is written twice
    assert rows.to_dict() == expected.to_dict() and list(rows["state"]) == ["done", "failed", "done"]
    expected_files, files = contents(folder / "in-process"), contents(folder / "engine")
    assert files.keys() == expected_files.keys() and sum(name.endswith(".parquet") for name in files) > 20
    differing = [name for name in files if files[name] != expected_files[name]]
    assert differing == ["failures/empty+tiny+0.json"]  # its trace
