"""The `coatnet` command: how it begins and how it ends. What it can do is found by `coatnet.commands`.

Imports as little as possible, since Ctrl-C is heeded from here on: whenever it comes, the command ends in
silence with status 130. A user's mistake is one line on stderr and status 2; a reader that went away, as
`head` does, is not worth a word.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

_STATUS_USER_ERROR = 2  # `coatnet.runtime.endings` has it for ranks, and imports more
_STATUS_NO_READER = 128 + signal.SIGPIPE


def main() -> NoReturn:
    """Run the command line and end the process with its status."""
    status: Any = 0
    _require_streams()
    _require_utf8()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without an arrow gets a question mark
        sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGINT, _leave)  # while modules are imported there is nothing to clean up
    _require_working_directory()
    try:
        from coatnet.commands import run

        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            status = run(sys.argv[1:])
        except SystemExit as ended:  # click ends with 1 where a reader went away
            status = _STATUS_NO_READER if isinstance(ended.__context__, BrokenPipeError) else ended.code
        sys.stdout.flush()
    except KeyboardInterrupt:
        _leave(signal.SIGINT, None)
    except BrokenPipeError:
        status = _STATUS_NO_READER
    except Exception as error:
        if os.environ.get("COATNET_TRACEBACK"):
            raise
        from coatnet.commands import in_a_line

        line = in_a_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        status = _STATUS_USER_ERROR
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor does one that comes at the very end leave a trace
    try:
        sys.stdout.flush()
    except OSError:  # what is still in the buffer must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _require_streams() -> None:
    """Open those that are closed (`>&-`) to nowhere: the next file would take number and text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(null, True)  # ranks have the streams of their launcher
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))


def _require_utf8() -> None:
    """Begin anew where the locale is of another encoding: names of classes and files must not depend on it.

    What is printed keeps to the locale.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{getattr(sys.stdout, 'encoding', 'utf-8')}:replace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _require_working_directory() -> None:
    """Refuse to begin in a folder that was removed: libraries fail there in ways of their own."""
    try:
        os.getcwd()
    except OSError:
        print("error: the working directory is gone; change into another folder", file=sys.stderr)
        sys.exit(_STATUS_USER_ERROR)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: other threads and exit handlers have nothing to say about an interruption."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
