"""Small Linux machines with a kernel of their own (User Mode Linux), whose power can be cut.

A node boots in seconds, has this machine's files as its root, read-only, and reaches other nodes over a
virtual switch: every program and library is at hand, and nothing is installed in it. Ending its kernel is a
power failure: what the node had written and not synced is gone. Needs root and, from Debian, user-mode-linux,
uml-utilities and kmod.

This file is also a node's first process: it obeys lines of JSON that come over the console.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from patience import until

KERNEL, SWITCH = "linux.uml", "uml_switch"
ANSWER = "> "  # how a program on a node marks what it says to us; libraries print what they like
_MODULES = Path("/usr/lib/uml/modules")
_MARK = "\x1e"  # what follows on the console is for us, not a message of the kernel
_NETWORK, _MOST_NODES = "10.9.0.", 20
_BOOT_SECONDS = 120.0


def missing() -> str | None:
    """Return what keeps nodes from running here, or None."""
    for program in (KERNEL, SWITCH, "modprobe"):
        if shutil.which(program) is None:
            return f"no {program} here: apt install user-mode-linux uml-utilities kmod"
    return None if os.geteuid() == 0 else "virtual nodes need root"


class Switch:
    """The wire between nodes."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "switch"
        self._process = subprocess.Popen(
            [SWITCH, "-unix", str(self.socket)],
            stdin=subprocess.PIPE,  # it ends with us
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self.socket.exists, what=str(self.socket), seconds=10)

    def close(self) -> None:
        """Cut the wire."""
        self._process.kill()
        self._process.wait()


class Node:
    """A machine that boots when it is made."""

    def __init__(self, number: int, *, switch: Switch, memory: str = "1G", disk: Path | None = None) -> None:
        """Boot; returns when the node obeys.

        Args:
            number: its name's and address's last part.
            disk: a file that is the node's /dev/ubda.

        Raises:
            RuntimeError: it does not come up within two minutes.
        """
        self.name, self.address = f"node{number}", f"{_NETWORK}{number}"
        words = [
            f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", f"node={number}",
            # A card that stays the same over a reboot: others keep its address in mind.
            f"eth0=daemon,02:00:00:00:00:{number:02x},unix,{switch.socket}", "con=null", "con0=fd:0,fd:1",
            *([f"ubd0={disk}"] if disk else []), f"init={sys.executable}",
        ]  # fmt: skip
        self._kernel = subprocess.Popen(
            [KERNEL, *words, "--", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._commands: dict[int, Command] = {}
        self._up, self._messages = threading.Event(), [""]
        threading.Thread(target=self._listen, daemon=True).start()
        if not self._up.wait(_BOOT_SECONDS):
            self.cut_power()
            raise RuntimeError(f"{self.name} does not boot: {' | '.join(self._messages[-10:])}")

    def start(self, *words: str | Path) -> Command:
        """Start a command."""
        command = Command(self, number=len(self._commands) + 1, words=[str(word) for word in words])
        self._commands[command.number] = command
        self.say(number=command.number, run=command.words)
        return command

    def run(self, *words: str | Path, seconds: float = 120.0) -> str:
        """Run a command to its end and return what it printed.

        Raises:
            RuntimeError: it failed.
        """
        command = self.start(*words)
        if status := command.wait(seconds):
            raise RuntimeError(
                f"{self.name}: {' '.join(command.words)}: {status}\n" + "\n".join(command.output)
            )
        return "\n".join(command.output)

    def load(self, *modules: str) -> None:
        """Load modules of the node's kernel."""
        self.run("modprobe", "-d", "/run/kernel", "-a", *modules)

    def cut_power(self) -> None:
        """Let the machine be gone, from one moment to the next."""
        with suppress(ProcessLookupError):
            os.killpg(self._kernel.pid, signal.SIGKILL)
        self._kernel.wait()

    def say(self, **word: Any) -> None:
        """Tell the node's first process something."""
        assert self._kernel.stdin is not None
        self._kernel.stdin.write(json.dumps(word).encode() + b"\n")
        self._kernel.stdin.flush()

    def _listen(self) -> None:
        assert self._kernel.stdout is not None
        for raw in self._kernel.stdout:
            message, mark, text = raw.decode(errors="replace").rstrip("\r\n").partition(_MARK)
            if message:
                self._messages.append(message)
            if not mark:
                continue
            word = json.loads(text)
            if word["number"] == 0:
                self._up.set()
            elif "line" in word:
                self._commands[word["number"]].lines.put(word["line"])
            else:
                self._commands[word["number"]].ends(word["status"])


class Command:
    """A command that a node runs."""

    def __init__(self, node: Node, *, number: int, words: Sequence[str]) -> None:
        self.number, self.words = number, list(words)
        self.output: list[str] = []
        self.lines: SimpleQueue[str] = SimpleQueue()
        self.status: int | None = None
        self._node, self._ended = node, threading.Event()

    def ends(self, status: int) -> None:
        """Take its exit status."""
        self.status = status
        self._ended.set()

    def wait(self, seconds: float = 120.0) -> int:
        """Return its exit status once it has ended.

        Raises:
            TimeoutError: it does not end.
        """
        if not self._ended.wait(seconds):
            raise TimeoutError(f"{self._node.name}: {self.words} does not end")
        with suppress(Empty):
            while True:
                self.output.append(self.lines.get_nowait())
        assert self.status is not None
        return self.status

    def read(self, seconds: float = 120.0) -> str:
        """Return the next line that it prints.

        Raises:
            TimeoutError: none comes.
        """
        try:
            self.output.append(self.lines.get(timeout=seconds))
        except Empty:
            heard = "\n".join(self.output[-20:])
            raise TimeoutError(f"{self._node.name}: {self.words} says nothing more\n{heard}") from None
        return self.output[-1]

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        self._node.say(number=self.number, tell=line)

    def send(self, number: signal.Signals) -> None:
        """Send it and its children a signal."""
        self._node.say(number=self.number, signal=int(number))


class _Init:
    """A node's first process."""

    def __init__(self) -> None:
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()

    def obey(self) -> None:
        """Prepare the machine, then do what the console says."""
        self._prepare()
        self._answer(number=0)
        for line in sys.stdin:
            word = json.loads(line)
            number = word["number"]
            if "run" in word:
                self._run(number, word["run"])
            elif "tell" in word:
                pipe = self._running[number].stdin
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.write(word["tell"] + "\n")
                    pipe.flush()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(self._running[number].pid, word["signal"])

    def _prepare(self) -> None:
        tty.setraw(0)
        settings = termios.tcgetattr(1)
        settings[1] &= ~termios.OPOST
        termios.tcsetattr(1, termios.TCSANOW, settings)
        os.environ.update(
            PATH="/usr/sbin:/usr/bin:/sbin:/bin",
            HOME="/run",
            TMPDIR="/run",
            LANG="C.UTF-8",
            OMP_NUM_THREADS="1",
        )
        _call("mount", "-t", "proc", "proc", "/proc")
        _call("mount", "-t", "sysfs", "sysfs", "/sys")
        Path("/dev/shm").mkdir(exist_ok=True)
        for place in ("/run", "/mnt", "/dev/shm", "/var/lib/nfs"):
            _call("mount", "-t", "tmpfs", "tmpfs", place)
        Path("/run/kernel/lib").mkdir(parents=True)
        Path("/run/kernel/lib/modules").symlink_to(_MODULES)
        hosts = Path("/run/hosts")
        nodes = (f"{_NETWORK}{number} node{number}\n" for number in range(1, _MOST_NODES + 1))
        hosts.write_text("127.0.0.1 localhost\n" + "".join(nodes))
        _call("mount", "--bind", str(hosts), "/etc/hosts")
        words = Path("/proc/cmdline").read_text().split()
        number = next(word for word in words if word.startswith("node=")).removeprefix("node=")
        _call("hostname", f"node{number}")
        _call("ip", "link", "set", "lo", "up")
        _call("ip", "address", "add", f"{_NETWORK}{number}/24", "dev", "eth0")
        _call("ip", "link", "set", "eth0", "up")

    def _run(self, number: int, words: Sequence[str]) -> None:
        try:
            self._running[number] = process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        except OSError as error:  # the kernel would end with its first process
            self._answer(number=number, line=str(error))
            self._answer(number=number, status=127)
            return
        threading.Thread(target=self._follow, args=(number, process), daemon=True).start()

    def _follow(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._answer(number=number, line=line.rstrip("\n"))
        self._answer(number=number, status=process.wait())

    def _answer(self, **word: Any) -> None:
        line = (_MARK + json.dumps(word) + "\n").encode()
        with self._lock:
            while line:
                line = line[os.write(1, line) :]


def _call(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    _Init().obey()
