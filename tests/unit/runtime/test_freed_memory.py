"""What tensors free stays for the next ones: the kernel fills every page that it hands out with zeros."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap")

# Blocks as large as activations, above the 32 MiB from which glibc maps each anew, written as tensors are.
FAULTS = """
import ctypes, resource, sys
from coatnet.runtime.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
keep_freed_memory()
for megabytes in map(int, sys.argv[1:]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(megabytes << 20))
    ctypes.memset(block, 1, megabytes << 20)
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*megabytes: int, **chosen: str) -> list[int]:
    """Return how many fresh pages blocks of so many MiB took in turn, in a process of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words = [sys.executable, "-c", FAULTS, *map(str, megabytes)]
    printed = subprocess.run(words, env={**plain, **chosen}, check=True, stdout=subprocess.PIPE, text=True)
    return [int(line) for line in printed.stdout.split()]


@functools.cache
def kept() -> list[int]:
    return faults(50, 10, 50, 200, 200)


def test_a_tensor_finds_the_pages_of_one_that_was_freed() -> None:
    first, second, third, *_ = kept()
    assert first > 100
    assert max(second, third) < first / 10


def test_the_largest_blocks_go_back_to_the_system() -> None:
    *_, first, second = kept()
    assert second > first / 2


@pytest.mark.parametrize(
    "chosen",
    [{"MALLOC_MMAP_THRESHOLD_": "1048576"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}],
)
def test_whoever_has_chosen_how_memory_is_given_back_keeps_his_choice(chosen: dict[str, str]) -> None:
    first, _, third = faults(50, 10, 50, **chosen)
    assert third > first / 2
