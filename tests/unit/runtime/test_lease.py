"""One job at a time holds a run directory; who was thought dead can no longer commit."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatnet.runtime import lease as module
from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost

WriteState = Callable[..., None]
HOLDER = """
import sys
from pathlib import Path
from coatnet.runtime.lease import Lease
Lease.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(directory: Path, *, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*by, sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def taken_over(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Lease, Lease]:
    """Let a job take a run over whose holder it thinks dead, as after a long freeze; return both leases."""
    first = Lease.acquire(directory)
    first.check()
    monkeypatch.setattr(module, "_is_alive", lambda *_: False)
    return first, Lease.acquire(directory)


def test_a_second_job_hears_within_five_seconds_who_holds_the_run(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        began = time.monotonic()
        with pytest.raises(LeaseHeld, match=f"process {holder.pid} on"):
            Lease.acquire(tmp_path)
        assert time.monotonic() - began < 5
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
def test_a_holder_in_another_container_of_this_machine_is_respected(tmp_path: Path) -> None:
    own_processes = ("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*own_processes, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes")
    holder = hold(tmp_path, by=own_processes)
    try:
        with pytest.raises(LeaseHeld):
            Lease.acquire(tmp_path)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("left", ["gone", "a zombie"])
def test_a_killed_holder_is_succeeded_at_once_with_the_next_epoch(tmp_path: Path, left: str) -> None:
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    # As in a container whose first process waits for nobody, it may stay as a zombie.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | (os.WNOWAIT if left == "a zombie" else 0))
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 2
    lease.release()
    holder.wait()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat and wait a fifth as long."""
    monkeypatch.setattr(module, "_BEAT_SECONDS", module._BEAT_SECONDS / 5)
    monkeypatch.setattr(module, "_SILENCE_SECONDS", module._SILENCE_SECONDS / 5)


def test_a_holder_has_several_beats_to_be_heard_and_a_job_its_answer_within_five_seconds() -> None:
    assert 3 * module._BEAT_SECONDS < module._SILENCE_SECONDS < 5 - 2 * module._BEAT_SECONDS / 4


@pytest.mark.slow
def test_a_holder_on_another_host_that_beats_is_respected_and_a_silent_one_is_not(
    far: Path, write_state: WriteState, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done = threading.Event()

    def beat() -> None:
        for number in itertools.count(2):
            if done.wait(0.02):
                return
            write_state(far, number)

    beater = threading.Thread(target=beat)
    beater.start()
    try:
        with pytest.raises(LeaseHeld, match="far"):
            Lease.acquire(tmp_path)
    finally:
        done.set()
        beater.join()
    request.getfixturevalue("quick")  # not before: the beating thread may be kept waiting by a busy disk
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 8
    lease.release()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_one_that_died_while_it_took_the_lease_is_waited_for_and_then_succeeded(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "epoch-00000001").touch()
    began = time.monotonic()
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 2 and time.monotonic() - began > module._SILENCE_SECONDS
    lease.release()


def test_of_eight_that_start_at_one_moment_exactly_one_holds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.04)  # a loser looks again four times as often
    directories = [tmp_path / str(round_) for round_ in range(20)]
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(8), context.SimpleQueue()
    starters = [context.Process(target=start, args=(directories, gate, answers)) for _ in range(8)]
    for one in starters:
        one.start()
    found = [answers.get() for _ in range(8 * len(directories))]
    for one in starters:
        one.join()
    for directory in directories:
        assert sorted(said for where, said in found if where == directory) == ["held"] * 7 + ["owner 1"]


def start(directories: list[Path], gate: Any, answers: Any) -> None:
    for directory in directories:
        gate.wait()
        try:
            answers.put((directory, f"owner {Lease.acquire(directory).epoch}"))
        except LeaseHeld:
            answers.put((directory, "held"))
    gate.wait()  # an owner lives until everybody has asked


def test_a_job_that_lost_its_lease_notices_and_touches_nothing_of_its_successors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken_over(tmp_path, monkeypatch)
    before = (tmp_path / "lease" / "epoch-00000002").read_text().splitlines()[0]
    with pytest.raises(LeaseLost, match=f"taken over by process {os.getpid()}"):
        first.check()
    with pytest.raises(LeaseLost):
        first.raise_if_lost()
    first.release()
    second.check()
    assert (tmp_path / "lease" / "epoch-00000002").read_text().splitlines()[0] == before
    second.release()


@pytest.mark.usefixtures("quick")
def test_the_beating_thread_sees_a_successor_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken_over(tmp_path, monkeypatch)
    assert first._lost.wait(60.0)
    with pytest.raises(LeaseLost):
        first.raise_if_lost()
    second.raise_if_lost()
    first.release()
    second.release()


def test_no_beat_is_like_the_one_before_and_one_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.01)
    write, states, enough = Lease._write_state, [], threading.Event()

    def noted(lease: Lease, state: int | str) -> None:
        states.append(state)
        if len(states) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(lease, state)
        if len(states) == 4:
            enough.set()

    monkeypatch.setattr(Lease, "_write_state", noted)
    lease = Lease.acquire(tmp_path)
    assert enough.wait(60.0) and len(set(states[:4])) == 4
    lease.raise_if_lost()
    lease.release()


def test_a_job_whose_view_of_the_folder_is_old_finds_its_own_file_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken_over(tmp_path, monkeypatch)
    with monkeypatch.context() as cached:
        cached.setattr(module, "_epochs", lambda directory: [1])  # a cached listing, as over NFS
        with pytest.raises(LeaseLost):
            first.check()
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["epoch-00000002"]
    first.release()
    second.check()
    second.release()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_holder_is_not_silent_while_the_file_system_does_not_answer(
    far: Path, write_state: WriteState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = module._read, []

    def hanging(asked_for: Path) -> dict[str, Any] | None:
        asked.append(None)
        if len(asked) == 3:  # the server is restarted; nobody can write either
            time.sleep(2 * module._SILENCE_SECONDS)
        if len(asked) == 5:  # it is there again, and so is the holder's next beat
            write_state(far, 2)
        return read(asked_for)

    monkeypatch.setattr(module, "_read", hanging)
    with pytest.raises(LeaseHeld, match="far"):
        Lease.acquire(tmp_path)


def test_a_holder_is_not_silent_while_the_process_that_asks_is_stopped(
    far: Path, write_state: WriteState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, clock = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(stopped))

    def stopped_meanwhile() -> str:
        """As by SIGSTOP right after the first look at the holder's beat."""
        if not stopped:
            stopped.append(2 * module._SILENCE_SECONDS)
            write_state(far, 2)
        return "here"

    monkeypatch.setattr(module, "_boot_id", stopped_meanwhile)
    with pytest.raises(LeaseHeld, match="far"):
        Lease.acquire(tmp_path)


def test_a_lease_that_cannot_be_written_is_none_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            Lease.acquire(tmp_path)
    assert list((tmp_path / "lease").iterdir()) == []


@pytest.mark.parametrize(("number", "lost"), [(errno.EIO, False), (errno.ENOENT, True), (errno.ESTALE, True)])
def test_a_file_system_that_does_not_answer_is_no_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, lost: bool
) -> None:
    lease = Lease.acquire(tmp_path)

    def failing(path: Path, *given: int) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        with pytest.raises(LeaseLost if lost else OSError):
            lease.check()
    if not lost:
        lease.check()
    lease.release()


def test_who_took_a_run_over_need_not_be_known_and_its_folder_may_be_gone(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path / "run")
    next((tmp_path / "run" / "lease").iterdir()).unlink()
    with pytest.raises(LeaseLost, match="taken over by another job"):
        lease.check()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(LeaseLost, match=r"/run: was moved or removed$"):
        lease.check()
    lease.release()


def test_a_holder_whose_name_is_gone_holds_the_run_all_the_same(
    far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_alive", lambda path, known: far.unlink() is None)
    with pytest.raises(LeaseHeld, match=r"held by process \? on \?"):
        Lease.acquire(tmp_path)


def test_a_beat_needs_no_space_on_the_disk(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    path = tmp_path / "lease" / "epoch-00000001"
    size, number = path.stat().st_size, path.stat().st_ino
    lease._write_state(123)
    assert (path.stat().st_size, path.stat().st_ino) == (size, number) and "123" in path.read_text()
    opened = len(os.listdir("/proc/self/fd"))
    for beat in range(20):
        lease._write_state(beat)
        lease.check()
    assert len(os.listdir("/proc/self/fd")) < opened + 20, "a beat a second would exhaust them"
    lease.release()
    assert path.stat().st_size == size and "released" in path.read_text()


@pytest.mark.parametrize(
    ("holder", "ours", "taken"),
    [
        ("7.1.1", "7.2.1", True),  # the next life
        ("7.1.1", "7.1.2", True),  # the next try
        ("7.2.1", "9.3.1", True),  # the successor in a chain
        ("7.2.1", "7.1.3", False),  # a life that was held for dead
        ("7.1.1", "7.1.1", False),
        ("", "7.1.1", False),  # started by hand
        ("7.1.1", "", False),
        ("garbage", "7.1.1", False),
    ],
)
def test_a_later_start_of_a_run_fences_an_earlier_one_that_still_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str, ours: str, taken: bool
) -> None:
    monkeypatch.setenv("COATNET_ATTEMPT", holder)
    first = Lease.acquire(tmp_path)
    monkeypatch.setenv("COATNET_ATTEMPT", ours)
    try:
        if not taken:
            with pytest.raises(LeaseHeld):
                Lease.acquire(tmp_path)
            return
        second = Lease.acquire(tmp_path)
        with pytest.raises(LeaseLost):
            first.check()
        second.release()
    finally:
        first.release()


def test_a_claim_that_another_went_past_meanwhile_is_no_lease(
    write_state: WriteState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def slowly(descriptor: int) -> None:
        fsync(descriptor)
        monkeypatch.undo()
        write_state(tmp_path / "lease" / "epoch-00000002", "released")

    monkeypatch.setattr(os, "fsync", slowly)
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 3
    lease.release()
