"""`coatnet plan | submit | status | logs | cancel`. Imports nothing heavy; knows no model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coatnet.config.keys import keys_option

if TYPE_CHECKING:
    from cluster.history import History
    from cluster.site import SiteConfig
    from cluster.submission import Request

_CONFIG = Annotated[str, typer.Argument(help="A config, a pipeline file, or the command's first argument.")]
_OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key.sub=value, or further arguments.")]


def plan(
    config: Annotated[Path, typer.Argument(help="A config of pretrain or finetune.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="nodes=8 gpus_per_node=8 hardware=h100 epoch_samples=N, or key.sub=value."),
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="pretrain or finetune, where the config could be of either.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Lists, as nodes=8,64, become a table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG of throughput and efficiency against GPUs.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml", help="Measure this machine's cores for a second, keep it, plan for it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict memory, speed, communication and days; needs no GPU and no queue.

    Example: coatnet plan configs/pretrain/imagenet_1k_coatnet_0.yaml \\
    nodes=8 hardware=h100
    """
    from cluster.planning.request import calibrated_words, compare_plans, scaling_plans
    from cluster.planning.tables import plot_scaling
    from coatnet.config import UserError

    given = overrides or []
    if plot is not None and compare:
        raise UserError("--plot and --compare exclude each other; give one")
    if calibrate is not None:
        compare_plans(command, config, given)  # a mistake is told before anything is measured
        given = calibrated_words(calibrate, given)
    if plot is not None:
        plans, unlike = scaling_plans(command, config, given)
        plot_scaling(plans, plot, name=config.stem)
        if not as_json:
            print(f"drawn: {plot}{unlike and f'; {unlike}'}")
            return
    show = _show_comparison if compare else _show_plan
    show(command, config, given, as_json=as_json)


def _show_comparison(command: str | None, config: Path, given: list[str], *, as_json: bool) -> None:
    import json

    from cluster.planning.request import compare_plans
    from cluster.planning.tables import print_comparison

    plans, refused = compare_plans(command, config, given)
    if as_json:
        print(json.dumps([one.to_dict() for one in plans], indent=2))
    else:
        print_comparison(plans, refused=refused)


def _show_plan(command: str | None, config: Path, given: list[str], *, as_json: bool) -> None:
    import json

    from cluster.planning.request import advice_of, plan_of
    from cluster.planning.tables import print_plan

    plan, choices = plan_of(command, config, given)
    remedies, quicker = advice_of(command, config, given, plan=plan)
    if as_json:
        advice = {
            "choices": [choice.to_dict() for choice in choices],
            "remedies": remedies,
            "quicker": quicker,
        }
        print(json.dumps({**plan.to_dict(), **advice}, indent=2))
    else:
        print_plan(plan, choices, name=config.stem, remedies=remedies, quicker=quicker)


def _site_schema() -> type:
    from cluster.site import SiteConfig

    return SiteConfig


def submit(
    target: _CONFIG,
    overrides: _OVERRIDES = None,
    command: Annotated[str, typer.Option(help="pretrain, finetune, shard or evaluate.")] = "pretrain",
    nodes: Annotated[int | None, typer.Option(help="Number of nodes.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs, and ranks, per node.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of each job, D-HH:MM:SS.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition to run in.")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features that nodes must have.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Nodes never to use.")] = None,
    spares: Annotated[int | None, typer.Option(help="Spare nodes, to replace those that fail.")] = None,
    continuation: Annotated[
        str | None, typer.Option(help="After the time limit: requeue, chain or none.")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="Image; the site file says pyxis or apptainer.")
    ] = None,
    array: Annotated[int, typer.Option(min=0, help="Number of tasks of a job array, for sharding.")] = 0,
    site: Annotated[
        Path | None, typer.Option(help="Site file; default: $COATNET_SITE, else ~/.config/coatnet/site.yaml.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the site file, as spares=1; see --keys.")
    ] = None,
    keys: Annotated[bool, keys_option(_site_schema)] = False,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="Any option of sbatch, as --mail-type=FAIL.")
    ] = None,
    srun: Annotated[list[str] | None, typer.Option(help="Any option of srun.")] = None,
    name: Annotated[str | None, typer.Option(help="Job name; default: the run directory's.")] = None,
    directory: Annotated[Path | None, typer.Option(help="Run directory, if the config names none.")] = None,
    after: Annotated[
        Path | None, typer.Option(help="Begin when this run is done, which waits or runs by now.")
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="Go on with a held or cancelled run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")
    ] = False,
) -> None:
    """Submit a run to SLURM; it goes on over time limits, preemption and lost nodes.

    Example: coatnet submit configs/pretrain/imagenet_1k_coatnet_0.yaml \\
    data.train=shards/train run.directory=runs/first --nodes 8 --time 2-00:00:00
    """
    from cluster.pipeline import is_pipeline
    from cluster.site import load_site
    from cluster.submission import Request
    from coatnet.config.shipped import find_config

    given = {"nodes": nodes, "gpus_per_node": gpus_per_node, "time": time, "partition": partition,
             "account": account, "qos": qos, "constraint": constraint, "exclude": exclude, "spares": spares,
             "continuation": continuation}  # fmt: skip
    chosen = load_site(site, overrides=set_ or [])
    chosen = chosen.updated(given, image=container, sbatch=sbatch or [], srun=srun or [])
    file = find_config(Path(target))
    if is_pipeline(file):
        alone = {"further arguments": overrides, "--name": name, "--directory": directory, "--array": array,
                 "--after": after}  # fmt: skip
        _submit_pipeline(file, site=chosen, refused=alone, release=release, dry_run=dry_run)
        return
    arguments = tuple(overrides or ())
    request = Request(command, target, arguments, chosen, name=name, directory=directory, array=array)
    _submit_job(request, after=after, release=release, dry_run=dry_run)


def _submit_job(request: Request, *, after: Path | None, release: bool, dry_run: bool) -> None:
    from cluster.after import job_before, submit_after
    from cluster.site import unheeded_settings
    from cluster.submission import corpora_notes, directory_note, prepare, preview, submit

    prepared = prepare(request)
    for note in (unheeded_settings(request.site), directory_note(prepared), *corpora_notes(prepared)):
        _tell(note)
    if dry_run:
        if after:
            job_before(after)
        print(preview(prepared), end="")
        return
    job_id = submit_after(after, prepared, release=release) if after else submit(prepared, release=release)
    print(f"job {job_id} submitted; watch it: coatnet status {prepared.job.directory}")


def _tell(note: str) -> None:
    if note:
        print(f"note: {note}", file=sys.stderr)


def _submit_pipeline(
    path: Path, *, site: SiteConfig, refused: Mapping[str, object], release: bool, dry_run: bool
) -> None:
    from cluster.pipeline import prepare_pipeline, submit_pipeline
    from cluster.site import unheeded_settings
    from cluster.submission import directory_note, preview
    from coatnet.config import UserError

    for option, value in refused.items():
        if value:
            raise UserError(f"{path} is a pipeline: its stages give {option} themselves")
    prepared = prepare_pipeline(path, site=site)
    _tell(unheeded_settings(site))
    for name, one in prepared.items():
        note = directory_note(one)
        _tell(note and f"{name}: {note}")
    if dry_run:
        for name, one in prepared.items():
            print(f"# ---- {name}\n{preview(one)}")
        return
    for name, job_id in submit_pipeline(path, prepared, release=release).items():
        print(f"{name}: " + (job_id if job_id == "done" else f"job {job_id}, {prepared[name].job.directory}"))


def status(
    directories: Annotated[
        list[Path] | None, typer.Argument(help="Run directories, or folders of them; default: runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every run: state, progress, rate, remaining and lost time, last error.

    Example: coatnet status runs
    """
    import dataclasses
    import json

    from cluster import slurm
    from cluster.status import find_runs, status_or_trouble
    from cluster.tables import print_status
    from coatnet.config import UserError

    for given in directories or []:
        if not given.is_dir():
            raise UserError(f"{given}: no such folder")
    runs = find_runs(directories or [Path("runs")])
    queue, silence = None, ""
    try:
        queue = _known_jobs(runs)
    except slurm.SlurmError as error:  # no SLURM here, or it is away: the directories still tell a lot
        silence = str(error)
    found = [status_or_trouble(run, queue=queue) for run in runs]
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        print_status(found, silence=silence)


def logs(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the run over restarts until it ends.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="This rank alone; default: the job's log and rank 0.")
    ] = None,
    tail: Annotated[int, typer.Option(min=0, help="How many of the last lines; 0: all.")] = 100,
) -> None:
    """Print the logs of a run, over all of its restarts.

    Example: coatnet logs -f runs/first
    """
    from cluster.history import was_submitted
    from cluster.logs import EndByHand, read_logs
    from cluster.status import has_finished
    from coatnet.config import UserError

    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    finished: Callable[[], bool] = partial(has_finished, directory)
    if not was_submitted(directory):
        if not follow and not (directory / "config.yaml").exists():
            raise UserError(f"{directory}: holds no run; give the run.directory of one")
        print(
            f"{directory}: started by hand; its first rank wrote to a terminal, here is what it reported",
            file=sys.stderr,
        )
        finished = by_hand = EndByHand(directory)
        if follow and not (by_hand.runs() or by_hand()):
            print("it does not run; waiting a minute for it to begin", file=sys.stderr)
    elif follow and not finished() and not any(directory.glob("logs/*.log")):
        print(f"{directory}: no logs yet; coatnet status {directory} says what it waits for", file=sys.stderr)
    is_silent = True
    for line in read_logs(directory, rank=rank, tail=tail, follow=follow, finished=finished):
        print(line, flush=follow)
        is_silent = False
    if is_silent:
        print(f"{directory}: no logs", file=sys.stderr)


def cancel(directory: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Cancel a run: its waiting jobs first, then the running one, which saves before it ends.

    Example: coatnet cancel runs/first
    """
    from cluster import slurm
    from cluster.cancel import cancel_run

    jobs = cancel_run(directory)
    ended = f"jobs ended: {', '.join(jobs)}" if jobs else "no job was queued"
    if not slurm.available():
        ended = "no squeue here, so cancel it where SLURM is, too: a job that runs goes on until then"
    print(f"{directory} is cancelled; {ended}")


def _known_jobs(runs: list[Path]) -> dict[str, Any]:
    """Return the queue's jobs, and from the accounting those that it no longer knows."""
    from cluster import slurm
    from cluster.history import History
    from cluster.run_jobs import users_of

    queue = slurm.queue(users=users_of(runs), limit_seconds=slurm.GLANCE_SECONDS)
    gone = [job_id for run in runs for job_id in _job_ids(History(run))[-1:] if job_id not in queue]
    return {**slurm.accounted(gone), **queue}


def _job_ids(history: History) -> list[str]:
    try:
        return history.job_ids()
    except OSError:  # told as the run's state
        return []
