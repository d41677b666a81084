"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, sys, time
from coatnet.runtime.parent import die_with_parent

parent, asked_after_its_death = os.getpid(), sys.argv[1] == "late"
if os.fork() == 0:
    if not asked_after_its_death:
        die_with_parent(parent)
    os.write(1, b"started ")
    while os.getppid() == parent:
        time.sleep(0.01)
    die_with_parent(parent)
    os.write(1, b"alive")
elif not asked_after_its_death:
    time.sleep(60)
"""


def test_a_child_whose_parent_went_before_it_could_ask_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "late"], capture_output=True, timeout=60)
    assert done.stdout == b"started "  # its end is the pipe's


def test_a_child_ends_with_its_killed_parent() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "early"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(8) == b"started "
    process.kill()
    assert process.stdout.read() == b""
    process.wait()
