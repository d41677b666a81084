"""A node is blamed for broken hardware and for ranks that die there alone, never for a program's mistake."""

from __future__ import annotations

import signal

import pytest

from cluster.blame import KILLED_TWICE, is_nobodys_fault, node_to_blame
from cluster.decide import Ending
from cluster.history import Life

NODES = ["n1", "n2"]


def crash(node: str = "n2", *, status: int = 139, message: str = "") -> Ending:
    return Ending(
        status=status, node=node, message=message, done=False, stopped=False, cancelled=False,
        state="RUNNING", warned=False, user_error=False, retries_left=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        "torch.AcceleratorError: CUDA error: unspecified launch failure",
        "RuntimeError: No CUDA GPUs are available: no CUDA-capable device is detected",
        "OSError: [Errno 5] Input/output error: 'shards/train/00007.tar'",
        "NCCL WARN Cuda failure 'GPU is lost'",
        "silent corruption: the weights of ranks [3] differ from the others' at step 500",
    ],
)
def test_the_words_of_broken_hardware_blame_their_node_at_once(message: str) -> None:
    found = node_to_blame([crash(status=1, message=message)], nodes=NODES)
    assert found == ("n2", f"a crash: {message}")
    assert node_to_blame([crash("n1", status=1, message=message)], nodes=["n1"]) is not None


@pytest.mark.parametrize(
    "message", ["ValueError: bad", "torch.OutOfMemoryError: CUDA out of memory", "KeyError: 'x'", ""]
)
def test_a_programs_own_mistake_blames_nobody(message: str) -> None:
    assert node_to_blame([crash(status=1, message=message)] * 3, nodes=NODES) is None


def test_ranks_killed_twice_on_one_node_blame_it() -> None:
    assert node_to_blame([crash()], nodes=NODES) is None
    blamed = node_to_blame([crash(), crash(status=137)], nodes=NODES)
    assert blamed is not None and blamed[0] == "n2" and KILLED_TWICE in blamed[1]
    assert node_to_blame([crash("n1"), crash(), crash()], nodes=NODES) == blamed_for(11)


def blamed_for(number: int) -> tuple[str, str]:
    return "n2", f"a rank was {KILLED_TWICE}, now by signal {number}"


def test_only_a_status_above_128_is_a_signal() -> None:
    assert node_to_blame([crash(status=128)] * 2, nodes=NODES) is None
    assert node_to_blame([crash(status=129)] * 2, nodes=NODES) == blamed_for(1)


@pytest.mark.parametrize("asked", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_ranks_that_were_asked_to_stop_before_they_could_listen_blame_none(asked: signal.Signals) -> None:
    assert node_to_blame([crash(status=128 + asked)] * 2, nodes=NODES) is None


def test_ranks_killed_on_several_nodes_or_on_the_only_one_blame_none() -> None:
    assert node_to_blame([crash("n1"), crash("n2")], nodes=NODES) is None
    assert node_to_blame([crash("n1"), crash("n1")], nodes=["n1"]) is None


def test_who_is_killed_again_after_a_node_was_left_out_for_it_has_a_mistake_of_his_own() -> None:
    known = [f"a rank was {KILLED_TWICE}"]
    assert node_to_blame([crash(), crash()], nodes=NODES, known=known) is None


def test_a_crash_whose_node_is_unknown_blames_none() -> None:
    assert node_to_blame([crash("", message="uncorrectable ECC error")], nodes=NODES) is None


def life(number: int, node: str, reason: str, *, nodes: tuple[str, ...] = ()) -> Life:
    return Life(
        number, "7", [node, *nodes], -1, 0.0, ended=1.0, outcome="excluded", excluded={node: reason}
    )  # fmt: skip


def test_one_node_after_the_other_that_fails_in_the_same_way_is_not_to_blame() -> None:
    missing = "check_interface: ModuleNotFoundError: No module named 'omegaconf'"
    lives = [life(1, "n1", missing), life(2, "n2", missing)]
    assert is_nobodys_fault({"n3": missing}, nodes=["n3"], lives=lives)
    assert is_nobodys_fault({"n3": missing}, nodes=["n3"], lives=[life(0, "n0", "fan is dead"), *lives])
    assert not is_nobodys_fault({"n3": missing}, nodes=["n3"], lives=lives[1:]), "two may well be bad"
    assert not is_nobodys_fault({"n3": "GPU 1 is wrong"}, nodes=["n3"], lives=lives)
    assert not is_nobodys_fault({"n3": missing}, nodes=["n3", "n4"], lives=lives), "a node is sound"
    sound = life(2, "n2", missing, nodes=("n5",))
    assert not is_nobodys_fault({"n3": missing}, nodes=["n3"], lives=[lives[0], sound])
    assert not is_nobodys_fault({}, nodes=["n3"], lives=lives)
