"""How a life ends, by what its ranks do: real processes, and shell scripts for SLURM's commands."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.job import STATUS
from cluster.notice import ending_notice
from coatnet.runtime.run_directory import RunDirectory

Machine = Any  # of conftest.py, which nothing can be imported from


def test_a_finished_run_leaves_the_queue_and_lets_go_what_waits_for_it(machine: Machine) -> None:
    assert machine.live(machine.DONE, dependents=["20"]) == 0
    assert machine.heard() == ["srun --nodelist=n1,n2", "scontrol release 20"]
    assert machine.last_life() == ("done", 1, "done")
    life = machine.history.lives()[0]
    assert (life.job_id, life.nodes, life.step) == ("7", ["n1", "n2"], -1)
    (event,) = machine.events("life")
    assert (event["life"], event["outcome"], event["reason"], event["excluded"]) == (1, "done", "done", {})
    attempt = machine.run.marker("attempt")
    assert (attempt["token"], attempt["job_id"], attempt["life"], attempt["number"]) == ("7.1.1", "7", 1, 1)


def test_a_run_that_stopped_as_asked_is_requeued_and_waits_for_its_end(machine: Machine) -> None:
    assert machine.live(machine.STOPPED) == 0
    assert machine.heard()[1:] == ["scontrol requeue 7"]
    assert machine.last_life() == ("stopped", 1, "saved and stopped as asked")
    assert machine.supervisor.terminated, "ending before SLURM ends it would end the job for good"


@pytest.mark.timeout(60)
def test_a_requeue_after_which_slurm_never_ends_the_job_is_not_waited_for_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], None]
) -> None:
    monkeypatch.setattr("cluster.supervisor._END_PATIENCE_SECONDS", 0.1)
    program("scontrol", 'case "$*" in *hostnames*) echo n1 n2 ;; *job*) echo JobState=RUNNING ;; esac')
    assert machine.live(machine.STOPPED) == 0
    assert machine.last_life()[0] == "stopped" and not machine.supervisor.terminated


def test_a_chained_run_ends_with_the_status_that_starts_its_successor(machine: Machine) -> None:
    assert machine.live(machine.STOPPED, continuation="chain") == 85
    queued, _ = machine.heard()
    options, _, script = queued.rpartition(" ")
    assert options == "sbatch --parsable --dependency=afternotok:7 --kill-on-invalid-dep=yes"
    assert script.endswith("/script.sh")


def test_a_crash_is_tried_again_in_place_and_recorded(machine: Machine) -> None:
    boom = machine.ended("n2", "Exited with exit code 7", task=1, says="ValueError: boom")
    assert machine.live(boom, machine.DONE) == 0
    assert machine.last_life() == ("done", 2, "done")
    (retry,) = machine.events("retry")
    assert retry["reason"] == "a rank on n2 ended with status 7: ValueError: boom"
    assert (retry["job_id"], retry["attempt"]) == ("7", "7.1.1")


@pytest.mark.parametrize("told", ["n1: task 0", "n2: tasks 1-2"])
def test_whoever_lost_a_rank_is_not_asked_what_happened_and_its_node_is_not_blamed(
    machine: Machine, told: str
) -> None:
    logs, lost = "$run/logs/$label", "error: rank 1 lost another rank (Connection closed by peer)"
    words = f"for rank in 0 1; do echo '{lost}' > {logs}.rank-$rank.log; done; "
    words += f"echo 'error: silent corruption: the weights of ranks [2] differ' > {logs}.rank-2.log; "
    words += f"echo 'srun: error: {told}: Exited with exit code 1' >&2; "
    machine.live(words + machine.ended("n2", "Exited with exit code 1", task=2), retries=2)
    assert machine.last_life()[0] == "excluded"
    assert list(machine.history.excluded()) == ["n2"]


def test_the_last_try_fails_the_job_with_the_ranks_status_and_cancels_what_waits(machine: Machine) -> None:
    boom = machine.ended("n1", "Exited with exit code 7", says="KeyError: no")
    assert machine.live(boom, retries=1, dependents=["20"]) == 7
    assert machine.last_life() == ("failed", 2, "a rank on n1 ended with status 7: KeyError: no")
    assert machine.heard() == ["srun --nodelist=n1,n2"] * 2 + ["scancel 20"]


def test_a_start_that_srun_itself_refuses_keeps_sruns_status(machine: Machine) -> None:
    assert machine.live("echo no such task > $run/logs/$label.rank-0.log; exit 5", retries=0) == 5
    assert machine.last_life()[2] == "srun ended with status 5: no such task"
    told = "echo a banner >&2; echo \"srun: unrecognized option '--foo'\" >&2; echo Try --help >&2; exit 255"
    assert machine.live(told, retries=0) == 255
    assert machine.last_life()[2] == "srun ended with status 255: unrecognized option '--foo'"


def test_ranks_that_said_nothing_leave_no_log(machine: Machine) -> None:
    log = "$run/logs/$label"
    said = f": > {log}.rank-1.log; echo hm > {log}.rank-2.log; : > {log}.preflight-0.log; exit 5"
    machine.live(said, retries=0)
    assert [log.name for log in machine.run.path.glob("logs/*")] == ["life-001.try-1.rank-2.log"]


def test_a_users_mistake_is_not_tried_again(machine: Machine) -> None:
    wrong = machine.ended("n1", "Exited with exit code 2", says="error: train.steps is x")
    assert machine.live(wrong) == 2
    assert machine.last_life() == ("failed", 1, "train.steps is x")


def test_a_lease_that_a_dying_job_holds_is_waited_for(machine: Machine) -> None:
    held = machine.ended("n1", "Exited with exit code 2", says="error: run: held by process 5 on n1; wait")
    assert machine.live(held, machine.DONE) == 0
    assert machine.last_life()[:2] == ("done", 2)


def test_a_rank_that_takes_too_much_memory_is_told_and_blames_no_node(machine: Machine) -> None:
    killed = machine.ended("n2", "Out Of Memory", task=1, says="step 7")
    assert machine.live(killed, retries=1) == 125
    reason = "a rank on n2 ended with status 125: out of memory, says SLURM; the last words: step 7"
    assert machine.last_life() == ("failed", 2, reason)


def test_ranks_that_end_without_a_word_are_started_again(machine: Machine) -> None:
    assert machine.live("true", machine.DONE) == 0
    assert machine.events("retry")[0]["reason"] == "ended without being done or stopped"


def test_a_run_that_ends_without_a_word_to_the_last_has_failed(machine: Machine) -> None:
    assert machine.live("true", retries=0) == 1
    assert machine.last_life() == ("failed", 1, "ended without being done or stopped")


def test_a_stop_of_an_earlier_attempt_does_not_count(machine: Machine) -> None:
    late = 'echo "{\\"attempt\\": \\"7.0.1\\"}" > $run/stopped'
    assert machine.live(late, machine.DONE) == 0
    assert machine.last_life()[:2] == ("done", 2)
    machine.run.clear("done")
    machine.run.mark("stopped", attempt="7.2.1")  # ours, but from before the ranks began
    assert machine.live("true", machine.DONE) == 0
    assert machine.last_life()[:2] == ("done", 2)


def test_a_stop_whose_rank_crashed_afterwards_is_tried_again(machine: Machine) -> None:
    assert machine.live(f"{machine.STOPPED}; exit 7", machine.DONE) == 0
    assert machine.last_life()[:2] == ("done", 2)


def test_a_node_that_kills_ranks_twice_is_replaced_by_a_spare(machine: Machine) -> None:
    machine.nodes = ["n1", "n2", "n3"]
    killed = machine.ended("n2", "Killed", task=1)
    assert machine.live(killed, killed, machine.DONE, nodes=2, spares=1) == 0
    assert machine.heard() == ["srun --nodelist=n1,n2"] * 2 + ["srun --nodelist=n1,n3"]
    assert list(machine.history.excluded()) == ["n2"]
    reasons = [event["reason"] for event in machine.events("retry")]
    assert "left out" not in reasons[0] and "; n2 is left out from now on: a rank was killed" in reasons[1]


def test_without_a_spare_the_run_goes_on_elsewhere(machine: Machine) -> None:
    assert machine.live(machine.ended("n2", "Killed", task=1)) == 1
    assert len(machine.events("retry")) == 1, "too few nodes are left for a third try"
    assert machine.heard()[2:] == ["scontrol requeue 7", "scontrol update jobid=7 ExcNodeList=n2"]
    assert machine.last_life()[:2] == ("excluded", 2)


def test_broken_hardware_at_the_last_try_costs_the_node_and_not_the_run(machine: Machine) -> None:
    machine.nodes = ["n1", "n2", "n3"]
    broken = machine.ended("n1", "Exited with exit code 1", says="CUDA error: uncorrectable ECC error")
    assert machine.live(broken, nodes=2, spares=1, retries=0) == 1
    assert machine.heard()[1:] == ["scontrol requeue 7", "scontrol update jobid=7 ExcNodeList=n1"]
    assert machine.last_life()[0] == "excluded"


@pytest.mark.parametrize(("ranks", "status"), [("{done}; exit 1", 0), ("exit 2", 2)])
def test_neither_a_finished_run_nor_a_users_mistake_blames_a_node(
    machine: Machine, ranks: str, status: int
) -> None:
    words = "OSError: [Errno 5] Input/output error"
    crash = machine.ended("n1", f"Exited with exit code {ranks[-1]}", says=words)
    assert machine.live(crash.replace("exit 1", ranks.format(done=machine.DONE))) == status
    assert machine.history.excluded() == {} and machine.last_life()[1] == 1


def test_who_is_killed_on_a_second_node_as_well_fails(machine: Machine) -> None:
    life = machine.history.begin(job_id="6", nodes=["n9"], step=-1)
    reason = "a rank was killed by a signal there in two tries"
    machine.history.end(life, outcome="excluded", reason="", tries=2, excluded={"n9": reason})
    assert machine.live(machine.ended("n2", "Killed", task=1)) == 137
    assert machine.last_life()[:2] == ("failed", 3)


def test_a_run_that_may_not_go_on_has_failed_where_its_nodes_did(machine: Machine) -> None:
    assert machine.live(machine.ended("n2", "Killed", task=1), continuation="none") == 85
    assert machine.last_life()[0] == "failed"
    assert machine.live(machine.STOPPED, continuation="none") == 85, "what is after it waits for its end"
    assert machine.last_life()[0] == "stopped"


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED"])
def test_a_job_that_slurm_is_ending_touches_nothing(machine: Machine, state: str) -> None:
    assert machine.live(f"echo {state} > {machine.state_file('7')}; exit 1") == 0
    assert machine.heard() == ["srun --nodelist=n1,n2"]
    assert machine.last_life() == ("ended", 1, f"SLURM ended the job ({state})")


@pytest.mark.parametrize(("continuation", "status"), [("requeue", 85), ("none", 85), ("chain", 0)])
def test_a_run_that_its_user_cancels_is_left_alone_and_nothing_begins_after_it(
    machine: Machine, continuation: str, status: int
) -> None:
    assert machine.live("echo {} > $run/cancelled; exit 1", continuation=continuation) == status
    assert machine.last_life() == ("ended", 1, "cancelled by the user")


def test_the_warning_before_the_time_limit_reaches_the_ranks(machine: Machine) -> None:
    asked = f"trap '{machine.STOPPED}; exit 0' USR1; kill -USR1 $PPID; while :; do sleep 0.02; done"
    assert machine.live(asked) == 0
    assert machine.last_life() == ("stopped", 1, "saved and stopped as asked")


def test_after_the_warning_nothing_is_started_again(machine: Machine) -> None:
    assert machine.live("trap 'exit 9' USR1; kill -USR1 $PPID; while :; do sleep 0.02; done") == 0
    assert machine.last_life() == ("stopped", 1, "asked to stop, ended with status 9")
    assert machine.heard()[1:] == ["scontrol requeue 7"]


def test_a_full_disk_keeps_no_run_from_its_next_life(machine: Machine) -> None:
    machine.history.note("padding", text=" " * 2**20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room_for_the_beginning = (machine.run.path / "lives.jsonl").stat().st_size + 150
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_for_the_beginning, hard))
    try:
        assert machine.live(machine.STOPPED) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert machine.heard()[1:] == ["scontrol requeue 7"] and machine.last_life()[0] == ""


@pytest.mark.parametrize(("ranks", "status", "done"), [("exit 0", 0, True), ("exit 4", 4, False)])
def test_a_command_without_markers_is_done_by_its_status(
    machine: Machine, ranks: str, status: int, done: bool
) -> None:
    assert machine.live(ranks, protocol=STATUS, retries=0) == status
    assert (machine.run.marker("done") is not None) is done


def test_a_command_that_was_told_to_stop_is_not_done_by_its_status(machine: Machine) -> None:
    asked = "trap 'exit 0' USR1; kill -USR1 $PPID; while :; do sleep 0.02; done"
    assert machine.live(asked, protocol=STATUS) == 0
    assert machine.run.marker("done") is None and machine.heard()[1:] == ["scontrol requeue 7"]


def test_what_srun_says_in_another_encoding_ends_no_life(machine: Machine) -> None:
    assert machine.live(f"printf 'srun: \\377\\n' >&2; {machine.DONE}") == 0


def test_ranks_begin_where_relative_paths_do(machine: Machine, tmp_path: Path) -> None:
    there = f'[ "$(pwd)" = {tmp_path} ] && {machine.DONE}'
    assert machine.live(there, working_directory=str(tmp_path), retries=0) == 0
    assert machine.last_life()[0] == "done"


def test_an_array_is_done_with_its_last_task(machine: Machine) -> None:
    assert machine.live("exit 4", protocol=STATUS, array=2, task=0, retries=0) == 4
    assert (machine.run.path / "task-0000" / "logs").is_dir()
    for task in (1, 0):
        assert machine.run.marker("done") is None
        assert "scontrol release 20" not in machine.heard()
        own_part = f'case "$*" in *" part-{task}") exit 0 ;; esac; exit 4'
        asked = {"command": ["shard", "part-{task}"], "dependents": ["20"]}
        assert machine.live(own_part, protocol=STATUS, array=2, task=task, **asked) == 0
        assert RunDirectory(machine.run.path / f"task-{task:04d}").marker("done") is not None
    assert machine.run.marker("done") is not None and machine.heard()[-1] == "scontrol release 20"


def test_the_successor_of_an_arrays_task_is_that_task_alone(machine: Machine) -> None:
    asked = {"protocol": STATUS, "array": 4, "task": 2, "continuation": "chain"}
    machine.live("exit 0", **asked)
    assert "--array=2 " in machine.heard()[0] and "--dependency=afternotok:7_2 " in machine.heard()[0]


def test_the_last_task_of_an_array_whose_id_it_has_goes_on_alone(machine: Machine) -> None:
    warn = "kill -USR1 $PPID; sleep 0.05"
    assert machine.live(warn, protocol=STATUS, array=3, task=2) == 0
    assert [line for line in machine.heard() if "requeue" in line] == ["scontrol requeue 7_2"]


def test_a_lifes_first_line_in_the_jobs_log_parts_it_from_how_the_last_was_ended(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.live(machine.DONE)
    log = machine.run.logs / "job-7.log"
    notice = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-26T15:15:39 DUE TO TIME LIMIT ***\n"
    log.write_text(notice + capsys.readouterr().out)
    assert ending_notice(machine.run.path, job_id="7", life=1) == ""
    assert ending_notice(machine.run.path, job_id="7", life=2) == "timeout"


def test_a_site_that_forbids_requeueing_is_told_with_another_way_to_go_on(machine: Machine) -> None:
    machine.refuse("requeue", "Requested operation is presently disabled")
    assert machine.live(machine.STOPPED, dependents=["20"]) == 1
    outcome, _, reason = machine.last_life()
    assert outcome == "failed" and "saved and stopped as asked, but SLURM does not let it go on" in reason
    assert "presently disabled; submit again, or with --continuation chain" in reason
    assert machine.heard()[-1] == "scancel 20"


def test_a_requeue_that_fails_since_slurm_ends_the_job_is_no_failure(machine: Machine) -> None:
    machine.refuse(
        "requeue",
        "Job/step already completing or completed",
        also=f"echo CANCELLED > {machine.state_file('7')}",
    )
    assert machine.live(machine.STOPPED) == 0
    assert machine.last_life()[0] == "stopped"


def test_a_chain_that_may_queue_no_successor_yet_runs_and_tries_again(machine: Machine) -> None:
    machine.refuse_submissions(1, "Job violates accounting/QOS policy")
    assert machine.live(machine.STOPPED, continuation="chain") == 85
    assert [line.split()[0] for line in machine.heard()] == ["sbatch", "srun", "sbatch"]


def test_a_chain_that_may_queue_no_successor_at_all_says_so(machine: Machine) -> None:
    machine.refuse_submissions(2, "Job violates accounting/QOS policy")
    assert machine.live(machine.STOPPED, continuation="chain") == 1
    outcome, _, reason = machine.last_life()
    assert outcome == "failed" and "QOS policy; submit again, or with --continuation none" in reason


def test_a_task_of_an_array_that_is_cancelled_is_left_alone(machine: Machine) -> None:
    cancel = f"echo {{}} > {machine.run.path}/cancelled; exit 1"
    assert machine.live(cancel, protocol=STATUS, array=2, task=1) == 85
    assert machine.heard() == ["srun --nodelist=n1,n2"]
    assert machine.live("exit 1", protocol=STATUS, array=2, task=0) == 85
    assert machine.heard() == ["srun --nodelist=n1,n2"], "nothing is started"
