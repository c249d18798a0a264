"""Jupyter kernels that are forks of a process with all heavy imports done: each is a process of its own, at once.

Run as a script: ``serve SOCKET MODULE ...`` imports the modules and forks a kernel for each that asks, until its
standard input is closed; ``start SOCKET CONNECTION_FILE`` asks for a kernel, and ends with it.
"""

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

NAME = "forked"
"""Of the kernel."""


@contextmanager
def forked_kernels(modules: Sequence[str], environment: Mapping[str, str]) -> Iterator[Path]:
    """Serve kernels until the block ends; yields the directory in which Jupyter finds them under ``NAME``."""
    with TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        spec = {"argv": [sys.executable, __file__, "start", address, "{connection_file}"], "display_name": NAME}
        path = Path(folder, NAME, "kernel.json")
        path.parent.mkdir()
        path.write_text(json.dumps({**spec, "language": "python"}), encoding="utf-8")
        command = [sys.executable, __file__, "serve", address, *modules]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as server:
            assert server.stdin is not None and server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            try:
                yield Path(folder)
            finally:
                server.stdin.close()


def serve(address: str, modules: Sequence[str]) -> None:
    """Import modules, and fork a kernel for each request."""
    sys.path.pop(0)  # the directory of this file
    for module in modules:
        import_module(module)
    children = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            child = os.fork()
            if not child:
                listener.close()
                run_kernel(connection)
                return
            connection.close()
            children.append(child)
    for child in children:
        os.waitpid(child, 0)


def run_kernel(connection: socket.socket) -> None:
    """Be the kernel that was asked for; the connection is closed with this process, or ends it."""
    from ipykernel.kernelapp import launch_new_instance

    with connection, connection.makefile() as lines:
        folder, connection_file = json.loads(lines.readline())
        os.chdir(folder)

        def end_with_asker() -> None:
            connection.recv(1)
            os._exit(0)

        threading.Thread(target=end_with_asker, daemon=True).start()
        launch_new_instance(argv=["-f", connection_file])


def start(address: str, connection_file: str) -> None:
    """Ask for a kernel in this directory, and wait until it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(json.dumps([os.getcwd(), connection_file]).encode() + b"\n")
        connection.recv(1)


if __name__ == "__main__":
    action, socket_file, *others = sys.argv[1:]
    if action == "serve":
        serve(socket_file, others)
    else:
        start(socket_file, *others)
