"""A real SLURM with several "nodes" on one machine: no systemd, no cgroups, no accounting database.

Every node is a slurmd of its own with its own port; a node's death is played by stopping and killing its
slurmd, its step daemons and its tasks together. Nothing outside the cluster's folder is touched, /etc/hosts
aside, which gets one line per node while the cluster lives. Several clusters can live at once, one in each
process that runs tests: then what one scenario does to its nodes is seen by no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from preloaded import Preloaded
from processes import environment_of, is_python, open_files, read, send_signal

_HOSTS = Path("/etc/hosts")
_CLIENT_SECONDS = 120
_BUSY = 4  # how much slower a machine may be than one on which nothing else runs, for which waits are given
_POLL_SECONDS = 0.2  # asking SLURM takes 20 ms of a core
_PLACES, _JOBS_APART = 4, 2500
_FIRST_PORT, _PORTS_APART = 6820, 40  # SLURM's own, and behind
DAEMONS = ("slurmctld", "slurmd", "munged")

_CONF = """\
ClusterName=coatnet
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/run/munge,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
MailProg=/bin/true
SlurmctldDebug=verbose
SlurmdDebug=verbose
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=0
SlurmctldTimeout=10
SlurmdTimeout={node_seconds}
KillWait=10
UnkillableStepTimeout={unkillable_seconds}
MinJobAge=600
MessageTimeout={message_seconds}
TCPTimeout={connection_seconds}
InactiveLimit=0
Waittime=0
CompleteWait=0
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0,max_rpc_cnt=0
PriorityType=priority/basic
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=7-00:00:00 State=UP PriorityTier=10 GraceTime=0
PartitionName=patient Nodes=ALL MaxTime=7-00:00:00 State=UP PriorityTier=10 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=00:10:00 State=UP PriorityTier=10
"""


class FakeCluster:
    """The cluster and what can happen to it.

    Args:
        nodes: number of nodes, called fake1, fake2, …
        cpus: cores that each of them claims.
        deadly: nodes die or freeze, which SLURM finds out in seconds; elsewhere a busy one is waited for.
    """

    def __init__(self, *, nodes: int = 4, cpus: int = 4, deadly: bool = False) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: sockets allow 107 characters
        self._tag = f"# {self.root.name}"
        self.names = [f"fake{number}" for number in range(1, nodes + 1)]
        self._cpus, self._deadly = cpus, deadly
        self._place, self._lock = _take_place()
        self.preloaded = Preloaded(self.root, tag=self.root.name[-5:])
        self.environment = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}
        for name in list(self.environment):
            if name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name != "SLURM_CONF":
                del self.environment[name]

    def start(self) -> None:
        """Bring the cluster up; returns when every node is idle."""
        for folder in ("state", "spool", "log", "run", "munge"):
            (self.root / folder).mkdir()
        self.root.chmod(0o755)
        (self.root / "munge").chmod(0o700)
        self._start_munge()
        self._name_nodes([f"127.0.0.1 {name} {self._tag}" for name in self.names])
        self._write_conf()
        self._daemon("slurmctld")
        for name in self.names:
            (self.root / "spool" / name).mkdir()
            self._daemon("slurmd", "-N", name)
        self.wait_for(self._all_idle, seconds=30, what="idle nodes")

    def stop(self) -> None:
        """Cancel what runs, end every daemon and remove the folder."""
        self.client("scancel", "--quiet", f"--user={os.getuid()}", check=False)
        with contextlib.suppress(AssertionError):
            self.wait_for(lambda: not self.client("squeue", "-h", check=False).strip(), seconds=15, what="")
        self.preloaded.stop()
        for pid in self._pids(lambda command, environment: self._is_ours(command, environment)):
            send_signal(pid, signal.SIGKILL)
        self._name_nodes([])
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)

    def client(self, *argv: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return what it printed."""
        done = subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, timeout=_CLIENT_SECONDS, check=False
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def state(self, job_id: str) -> str:
        """Return a job's state."""
        found = re.search(
            r"JobState=(\w+)", self.client("scontrol", "-o", "show", "job", job_id, check=False)
        )
        return found[1] if found else ""

    def wait_for_state(self, job_id: str, *states: str, seconds: float = 90) -> str:
        """Wait until the job is in one of the states, and return it."""
        self.wait_for(lambda: self.state(job_id) in states, seconds=seconds, what=f"job {job_id} {states}")
        return self.state(job_id)

    def waiting(self) -> bool:
        """Return whether any job waits or runs."""
        return bool(self.client("squeue", "-h").strip())

    def wait_for(
        self, happened: Callable[[], object], *, seconds: float, what: str, ask: bool = True
    ) -> None:
        """Poll until `happened`; a cluster gives no events.

        Args:
            happened: is true when it has.
            seconds: how long it may take where nothing else runs.
            what: it is, for the error.
            ask: show queue and nodes if it does not happen.
        """
        deadline = time.monotonic() + seconds * _BUSY
        while not happened():
            if time.monotonic() > deadline:
                known = self._known() if ask else ""
                raise AssertionError(f"waited {seconds * _BUSY:g} s for {what}\n{known}")
            time.sleep(_POLL_SECONDS)

    def _known(self) -> str:
        """Return the queue, the nodes' states and the daemons' last words."""
        asked = [self.client("squeue", check=False), self.client("sinfo", "-N", "-l", check=False)]
        logs = sorted((self.root / "log").glob("*.log"))
        said = [f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-4:]]
        return "\n".join([*asked, *said])

    def kill_controller(self, *, job_id: str) -> None:
        """Kill the cluster's controller once it has written down what it knows of a job; jobs go on.

        It does so up to five seconds after a change. One killed before has forgotten the job when it comes
        back, and ends it as nobody's.
        """
        saved, changed = self.root / "state" / "job_state", time.time()
        self.client("scontrol", "update", f"jobid={job_id}", "comment=changed")
        self.wait_for(
            lambda: saved.exists() and saved.stat().st_mtime > changed, seconds=30, what="the saved state"
        )
        pid = int((self.root / "run" / "slurmctld.pid").read_text())
        send_signal(pid, signal.SIGKILL)

    def start_controller(self) -> None:
        """Start the controller again, with the state that it left."""
        self._daemon("slurmctld")
        self.wait_for(
            lambda: "UP" in self.client("scontrol", "ping", check=False),
            seconds=30,
            what="the controller",
            ask=False,
        )

    def kill_node(self, name: str) -> None:
        """Cut a node's power: everything on it dies at once."""
        for pid in self._stop_node(name):
            send_signal(pid, signal.SIGKILL)
        (self.root / "run" / f"slurmd.{name}.pid").unlink(missing_ok=True)

    def kill_ranks(self, name: str) -> None:
        """Kill the ranks on a node, as a crash would; its daemons and a batch script stay."""
        for pid in self._ranks(name):
            send_signal(pid, signal.SIGKILL)

    def has_ranks(self, name: str) -> bool:
        """Return whether ranks live on a node, frozen or not."""
        return bool(self._ranks(name))

    def kill_batch_script(self, name: str) -> None:
        """Kill the batch script of the job that began on a node."""
        for pid in self._node_pids(name):
            if "cluster.supervisor" in read(f"/proc/{pid}/cmdline").decode().split("\0"):
                send_signal(pid, signal.SIGKILL)

    def freeze_node(self, name: str) -> None:
        """Cut a node off: everything on it stands still, until `thaw_node`."""
        self._stop_node(name)

    def thaw_node(self, name: str, *, daemons: bool = True) -> None:
        """Let a frozen node go on, unaware of what happened meanwhile; without `daemons` only its ranks."""
        for pid in self._node_pids(name) if daemons else self._ranks(name):
            send_signal(pid, signal.SIGCONT)

    def _ranks(self, name: str) -> list[int]:
        """Return the ranks on a node: what srun started, and what that had forked by the preloaded server."""
        return [
            pid for pid in self._node_pids(name)
            if self._is_forked_for(pid, name)
            or (environment_of(pid).get("SLURM_STEP_ID") is not None and is_python(pid))
        ]  # fmt: skip

    def _is_forked_for(self, pid: int, name: str) -> bool:
        return read(f"/proc/{pid}/comm").decode(errors="replace").strip() == f"{self.preloaded.tag}@{name}"

    def revive_node(self, name: str) -> None:
        """Start a node again that died, was cut off or drained, whatever runs on it."""
        if not self._node_pids(name):
            self._daemon("slurmd", "-N", name)
        self.client("scontrol", "update", f"nodename={name}", "state=resume", check=False)

    def sick_nodes(self) -> list[str]:
        """Return the nodes that take no jobs."""
        good = {"idle", "mixed", "allocated", "completing", "planned"}
        return [name for name, state in self._node_states().items() if state.rstrip("*") not in good]

    def restore_node(self, name: str) -> None:
        """Start a dead node again and wait until it is idle."""
        self.revive_node(name)
        self.wait_for(lambda: self._node_states()[name] == "idle", seconds=30, what=f"{name} idle")

    def _stop_node(self, name: str) -> set[int]:
        seen: set[int] = set()
        while new := [pid for pid in self._node_pids(name) if pid not in seen]:
            for pid in new:
                send_signal(pid, signal.SIGSTOP)
            seen.update(new)
        return seen

    def _node_pids(self, name: str) -> list[int]:
        """Return the daemons of a node before its tasks: a task that dies first would look like a crash."""
        log = f"{self.root}/log/slurmd.{name}.log"

        def is_daemon(command: list[str], environment: dict[str, str]) -> bool:
            return os.path.basename(command[0]) == "slurmd" and "-N" in command and name in command

        def is_step(command: list[str], environment: dict[str, str]) -> bool:
            return command[0].startswith("slurmstepd: ") or os.path.basename(command[0]) == "slurmstepd"

        def is_task(command: list[str], environment: dict[str, str]) -> bool:
            ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            return ours and environment.get("SLURMD_NODENAME") == name

        daemons = [pid for pid in self._pids(is_daemon) if self._is_of_this_cluster(pid)]
        # a step daemon does not say its node, but it holds the node's log open
        steps = [pid for pid in self._pids(is_step) if log in open_files(pid)]
        tasks = [pid for pid in self._pids(is_task) if pid not in {*daemons, *steps}]
        forked = [pid for pid in self._pids(lambda *_: True) if self._is_forked_for(pid, name)]
        return [*daemons, *steps, *tasks, *forked]

    def _is_of_this_cluster(self, pid: int) -> bool:
        return environment_of(pid).get("SLURM_CONF") == self.environment["SLURM_CONF"]

    def _is_ours(self, command: list[str], environment: dict[str, str]) -> bool:
        mine = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
        return mine or any(str(self.root) in part for part in command)

    def _pids(self, wanted: Callable[[list[str], dict[str, str]], bool]) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                command = read(f"/proc/{entry}/cmdline").decode(errors="replace").split("\0")
                if command[0] and wanted(command, environment_of(int(entry))):
                    found.append(int(entry))
        return found

    def _daemon(self, program: str, *arguments: str) -> None:
        path = shutil.which(program) or f"/usr/sbin/{program}"
        subprocess.run([path, *arguments], env=self.environment, check=True, timeout=_CLIENT_SECONDS)

    def _start_munge(self) -> None:
        key = self.root / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        options = [f"--{option}-file={self.root}/munge/{option}" for option in ("key", "pid", "log", "seed")]
        self._daemon("munged", *options, f"--socket={self.root}/run/munge", "--num-threads=2")

    def _name_nodes(self, lines: list[str]) -> None:
        with _HOSTS.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            kept = [line for line in file.read().splitlines() if not line.endswith(self._tag)]
            file.seek(0)
            file.write("\n".join([*kept, *lines]) + "\n")
            file.truncate()

    def _write_conf(self) -> None:
        ports = _free_ports(1 + len(self.names), place=self._place)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10
        nodes = [
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} "
            f"RealMemory={memory} State=UNKNOWN"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        host = socket.gethostname().split(".")[0]
        message_seconds = 5 if self._deadly else 30
        text = _CONF.format(
            host=host,
            port=ports[0],
            first_job=1 + _JOBS_APART * self._place,
            user=os.environ.get("USER") or "root",
            root=self.root,
            nodes="\n".join(nodes),
            node_seconds=10 if self._deadly else 120,
            message_seconds=message_seconds,
            # A step daemon that waits for an answer of a controller that is away, its tasks all gone, counts
            # as unkillable after that time, and its node is drained.
            unkillable_seconds=5 * message_seconds,
            connection_seconds=2 if self._deadly else 10,
        )
        (self.root / "slurm.conf").write_text(text)

    def _all_idle(self) -> bool:
        return set(self._node_states().values()) == {"idle"}

    def _node_states(self) -> dict[str, str]:
        """Return each node's state; the controller, asked for one node alone, tells what that was before."""
        said = self.client("sinfo", "-h", "-p", "batch", "-N", "-o", "%N %T", check=False)
        told = (line.partition(" ") for line in said.splitlines())
        return dict.fromkeys(self.names, "") | {name: state.strip() for name, _, state in told}


def _take_place() -> tuple[int, int]:
    """Return a number that no other cluster on this host has, and the descriptor that keeps it.

    Ranks meet at a port that follows from the job's id, and here all nodes are one host.
    """
    while True:
        for number in range(_PLACES):
            path = f"{tempfile.gettempdir()}/slurm-place-{number}"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, lock
            os.close(lock)
        time.sleep(1.0)


def _free_ports(count: int, *, place: int) -> list[int]:
    """Return ports below those that the kernel gives to clients, who might be quicker than a daemon."""
    ports = []
    for port in range(_FIRST_PORT + place * _PORTS_APART, _FIRST_PORT + (place + 1) * _PORTS_APART):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    assert len(ports) >= count, f"no {count} free ports from {_FIRST_PORT} on"
    return ports[:count]
