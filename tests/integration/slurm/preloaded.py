"""`coatnet` for the fake cluster's ranks, with torch and DeepSpeed imported once instead of in every life.

`Preloaded.program()` writes an executable that srun starts in the place of `coatnet`. It hands its arguments,
environment and standard streams to a server, this file, which forks the real command. Signals and the exit
status go through the executable, and its death is the command's. A start takes a tenth of a second instead of
four of processor time on each rank, which is most of what a short life costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_START_SECONDS = 200
_WAITING_STEP = 10  # by then a record has been written, and a watchdog is still patient

# It must be up at once and takes signals from its first line on, so it sees no site packages.
_EXECUTABLE = """\
#!{python} -IS
import array, json, os, signal, socket, sys
early, child = [], 0
def forward(number, frame):
    if child:
        os.kill(child, number)
    else:
        early.append(number)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = dict(arguments=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd())
request.update(pace={pace}, until_told={until_told}, flips_at={flips_at})
streams = array.array("i", [0, 1, 2]).tobytes()
server.sendmsg([json.dumps(request).encode() + b"\\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
answers = server.makefile()
child = int(answers.readline())
for number in early:
    os.kill(child, number)
status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class Preloaded:
    """The server, as the tests see it.

    Args:
        folder: for its socket; short, since sockets allow 107 characters.
        tag: first part of the forked commands' names, `TAG@NODE`, by which a node's processes are found.
    """

    def __init__(self, folder: Path, *, tag: str) -> None:
        self._socket, self.tag = folder / "preloaded", tag
        self._process: subprocess.Popen[bytes] | None = None

    def program(self, path: Path, *, pace: float, until_told: bool = False, flips_at: int = 0) -> Path:
        """Write the executable; for `pace` and `until_told` see `keep_pace`, for `flips_at` `flip_a_bit`."""
        self._start()
        text = _EXECUTABLE.format(
            python=sys.executable, socket=str(self._socket), pace=pace, until_told=until_told,
            flips_at=flips_at,
        )  # fmt: skip
        path.write_text(text)
        path.chmod(0o755)
        return path

    def stop(self) -> None:
        """End the server."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(timeout=20)

    def _start(self) -> None:
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._socket), self.tag], stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while not self._socket.exists():
            assert self._process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)


class _Server:
    """One thread, so that forking is safe: it waits for executables and for what they became."""

    def __init__(self, path: Path, tag: str) -> None:
        self._tag = tag
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{path}.part")
        self._listener.listen(64)
        self._watch(self._listener, self._accept)
        self._watch(sys.stdin, lambda: os._exit(0))
        os.rename(f"{path}.part", path)

    def serve(self) -> NoReturn:
        """Answer for ever."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._selector.get_map():  # an event before may have ended it
                    key.data()

    def _watch(self, source: Any, act: Callable[[], object]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        data, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        while data and not data.endswith(b"\n"):
            more = client.recv(1 << 20)
            data = data + more if more else b""
        child = os.fork() if data else None
        if child == 0:
            self._selector.close()
            _become(json.loads(data), streams, tag=self._tag)
        for descriptor in streams:
            os.close(descriptor)
        if child is None:
            client.close()
            return
        process = os.pidfd_open(child)

        def killed() -> None:
            self._selector.unregister(client)
            os.kill(child, signal.SIGKILL)

        def ended() -> None:
            self._selector.unregister(process)
            os.close(process)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if client in self._selector.get_map():
                self._selector.unregister(client)
            _tell(client, status)
            client.close()

        self._watch(process, ended)
        self._watch(client, killed)
        _tell(client, child)


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.sendall(f"{number}\n".encode())


def _become(request: dict[str, Any], streams: list[int], *, tag: str) -> NoReturn:
    """Be the command that the executable asked for."""
    os.setpgid(0, 0)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    node = os.environ["SLURMD_NODENAME"]
    Path("/proc/self/comm").write_text(f"{tag}@{node}")
    sys.argv = ["coatnet", *request["arguments"]]
    status = 1
    try:
        _be_a_host_of_its_own(node)
        keep_pace(float(request["pace"]), until_told=bool(request["until_told"]))
        flip_a_bit(int(request["flips_at"]))
        from coatnet.cli import main

        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def _be_a_host_of_its_own(node: str) -> None:
    """Let leases tell the nodes apart, which share a kernel: a frozen one would never be taken for dead."""
    from coatnet.runtime import lease

    lease._boot_id = lambda: node


def keep_pace(seconds: float, *, until_told: bool = False) -> None:
    """Make steps long enough for things to happen between them.

    Args:
        seconds: what a step takes at least.
        until_told: the first life goes no further than its tenth step until a signal tells it to stop.
    """
    from coatnet.runtime.stop import StopFlag
    from pretrain.trainer import Trainer

    step, request, taken, told = Trainer.step, StopFlag.request, [], []
    waits = until_told and os.environ["COATNET_ATTEMPT"].split(".")[1] == "1"

    def slow_step(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        taken.append(None)
        while waits and len(taken) >= _WAITING_STEP and not told:
            time.sleep(0.02)
        return step(*arguments, **named)

    def noted(flag: StopFlag, reason: str) -> None:
        request(flag, reason)
        told.append(reason)

    Trainer.step, StopFlag.request = slow_step, noted


def flip_a_bit(at: int) -> None:
    """Flip a bit in a weight of the last rank behind a step of the first life; 0 flips none."""
    is_last = int(os.environ.get("SLURM_PROCID", 0)) == int(os.environ.get("SLURM_NTASKS", 0)) - 1
    if not at or not is_last or os.environ["COATNET_ATTEMPT"].split(".")[1] != "1":
        return
    import torch

    from pretrain.trainer import Trainer

    step, taken = Trainer.step, []

    def faulty_step(self: Trainer, *arguments: Any, **named: Any) -> Any:
        result = step(self, *arguments, **named)
        if named["learning_rate"] > 0:  # not the rehearsal
            taken.append(None)
        if len(taken) == at:
            next(self.engine.module.parameters()).data.view(torch.int32).view(-1)[0] ^= 1
        return result

    Trainer.step = faulty_step


def main() -> None:
    sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
    from warm import warm_up

    warm_up()
    _Server(Path(sys.argv[1]), sys.argv[2]).serve()


if __name__ == "__main__":
    main()
