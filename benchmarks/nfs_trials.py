"""What is tried with a job on each node, on run directories of its own, and the table of what was found."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs_on_nodes import ask, end, hear, last_saved, say, start
from nfs_machines import Cluster
from virtual_nodes import Command


@dataclass
class Table:
    """What was found."""

    rounds: int = 0
    takeovers_missed: int = 0  # a job that was taken over saved, or its successor could not begin
    refusals_missed: int = 0  # a second start was not refused
    double_committers: int = 0
    promised_lost_with_a_node: int = 0
    promised_lost_with_the_server: int = 0
    jobs_ended_by_the_server: int = 0
    broken_checkpoints: int = 0
    trainings_with_other_bits: int = 0
    slowest_takeover_seconds: float = 0.0
    slowest_after_the_server_seconds: float = 0.0  # from its being back to the next save
    survivor_ended_after_seconds: float = 0.0  # of a training whose other node lost its power

    def bad(self) -> bool:
        """Return whether anything was wrong."""
        return any(value for key, value in asdict(self).items() if key != "rounds" and "seconds" not in key)


def takeover(cluster: Cluster, run: Path, table: Table, _: random.Random) -> None:
    """A later life of a run begins on another node; the former must neither save nor come back."""
    one, other = (start(node, run) for node in cluster.nodes)
    ask(one, "acquire 1", "acquired")
    ask(one, "save 1", "saved")
    said = ask(other, "acquire 1")
    table.refusals_missed += not said.startswith("held")
    began = time.monotonic()
    said = ask(other, "acquire 2")
    table.slowest_takeover_seconds = max(table.slowest_takeover_seconds, round(time.monotonic() - began, 2))
    table.takeovers_missed += not said.startswith("acquired")
    table.takeovers_missed += ask(other, "steps") != "1"
    table.takeovers_missed += not ask(one, "save 2").startswith("lost")
    table.takeovers_missed += not ask(other, "save 2").startswith("saved")
    table.takeovers_missed += not ask(one, "save 3").startswith("lost")
    judge(other, table, expected="1:1 2:2")
    ask(other, "release", "released")
    end(one, other)


def frozen(cluster: Cluster, run: Path, table: Table, _: random.Random) -> None:
    """A job stops for a while after it has made sure of its lease; its successor has gone on meanwhile."""
    one, other = (start(node, run) for node in cluster.nodes)
    ask(one, "acquire 1", "acquired")
    ask(one, "save 1", "saved")
    ask(one, "freeze 2", "frozen")
    table.takeovers_missed += not ask(other, "acquire 2").startswith("acquired")
    known = ask(other, "steps")
    one.send(signal.SIGCONT)
    table.double_committers += not hear(one).startswith("lost")
    ask(other, "save 3", "saved")
    judge(other, table, expected="1:1 3:2" if known == "1" else "1:1 2:1 3:2")
    end(one, other)


def cut_off(cluster: Cluster, run: Path, table: Table, chance: random.Random) -> None:
    """A node that saves is cut off, and comes back with what it had to send when another has gone on."""
    one, other = (start(node, run) for node in cluster.nodes)
    save_for_a_while(one, chance)
    cluster.nodes[0].run("ip", "link", "set", "eth0", "down")
    promised = last_saved(one)
    table.takeovers_missed += not ask(other, "acquire 2").startswith("acquired")
    known = ask(other, "steps").split()
    table.promised_lost_with_a_node += str(promised) not in known
    ask(other, "save 1000", "saved")
    cluster.nodes[0].run("ip", "link", "set", "eth0", "up")
    while hear(one) != "ended":
        pass
    table.double_committers += str(last_saved(one)) not in known
    judge(other, table, expected=" ".join([*(f"{step}:1" for step in known), "1000:2"]))
    end(one, other)


def node_without_power(cluster: Cluster, run: Path, table: Table, chance: random.Random) -> None:
    """The power of a node is cut while it saves; what it had promised must be there for the other."""
    one, other = (start(node, run) for node in cluster.nodes)
    save_for_a_while(one, chance)
    cluster.nodes[0].cut_power()
    promised = last_saved(one)
    table.takeovers_missed += not ask(other, "acquire 2").startswith("acquired")
    steps = ask(other, "steps").split()
    table.promised_lost_with_a_node += str(promised) not in steps
    judge(other, table, expected=" ".join(f"{step}:1" for step in steps))
    ask(other, "save 1000", "saved")
    end(other)
    cluster.nodes[0] = cluster.boot(0)


def server_without_power(cluster: Cluster, run: Path, table: Table, chance: random.Random) -> None:
    """The power of the server is cut while a node saves: what was promised is there, and the job goes on."""
    job = start(cluster.nodes[0], run)
    save_for_a_while(job, chance)
    cluster.cut_server()
    began, promised, later = time.monotonic(), last_saved(job), ""
    while not later.startswith("saved"):
        later = hear(job)
        if later == "ended":
            break
    table.jobs_ended_by_the_server += later == "ended"
    spent = round(time.monotonic() - began, 2)
    table.slowest_after_the_server_seconds = max(table.slowest_after_the_server_seconds, spent)
    job.send(signal.SIGKILL)
    job.wait()
    other = start(cluster.nodes[1], run)
    steps = list(map(int, ask(other, "steps").split()))
    table.promised_lost_with_the_server += promised not in steps
    judge(other, table, expected=" ".join(f"{step}:1" for step in steps))
    end(other)


TRIALS = (takeover, frozen, cut_off, node_without_power, server_without_power)


def save_for_a_while(job: Command, chance: random.Random) -> None:
    """Let a job take the lease and save without end; return somewhere in its saves."""
    ask(job, "acquire 1", "acquired")
    job.tell("endless")
    hear(job)
    time.sleep(chance.uniform(0.0, 3.0))


def judge(job: Command, table: Table, *, expected: str) -> None:
    """Read every checkpoint back and compare who wrote it."""
    said = ask(job, "verify")
    if said != expected:
        say(f"expected {expected}, found {said}")
        table.broken_checkpoints += said.startswith("failed")
        table.double_committers += not said.startswith("failed")
