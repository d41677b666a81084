"""What SLURM wrote into a job's log when it ended the job: all that is left without accounting."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.progress import last_lines

_LINES = 200
_BEGAN = re.compile(r"\S+ \S+ life (\d+) on ")  # the supervisor's first line of a life
_NOTICE = re.compile(r"error: \*\*\* JOB \d+ ON \S+ CANCELLED AT \S+(?: DUE TO (.*))? \*\*\*", re.I)
_STATES = {
    "TIME LIMIT": "timeout",
    "PREEMPTION": "preempted",
    "NODE FAILURE": "node_fail",
    "JOB REQUEUE": "requeued",
}


def ending_notice(directory: Path, *, job_id: str, life: int) -> str:
    """Return the state in which SLURM's step daemon saw a life end, empty where it wrote nothing.

    A notice without a reason, or with a signal for one, is somebody's scancel. The log holds every life of a
    requeued job; what was written before `life` began counts no more.
    """
    found = ""
    for line in last_lines(directory / "logs" / f"job-{job_id}.log", count=_LINES):
        began = _BEGAN.match(line)
        if began and int(began[1]) == life:
            found = ""
        notice = _NOTICE.search(line)
        if notice:
            found = _state(notice[1] or "")
    return found


def _state(reason: str) -> str:
    return next((state for words, state in _STATES.items() if reason.startswith(words)), "cancelled")
