"""A stand-in for a worker, and the result of one of its calls."""

import os
import time


class Echo:
    """Returns what it is given, fails, or sleeps."""

    def __init__(self, folder):
        self.folder = folder

    def back(self, value):
        return os.getpid(), value

    def fail(self):
        raise ValueError("a reason")

    def sleep(self):
        time.sleep(60)

    def close(self):
        pass


def result_of(pipes, ref):
    deadline = time.monotonic() + 60
    while not pipes.wait([ref]):
        assert time.monotonic() < deadline
    return pipes.get(ref)
