"""The training loop of both stages. It reads like the plan of a run; whoever it calls knows the details."""

from __future__ import annotations

from coatnet.runtime.progress import progress
from coatnet.training.checkpoints import State
from coatnet.training.recorder import LEAVE, SAVE, STOP
from coatnet.training.run import Result, TrainingRun


def train_to_end(run: TrainingRun[State, Result]) -> None:
    """Train, and leave the summary and a marker."""
    state = None
    try:
        state = train(run)
    finally:
        run.close(state)
    run.finish(state)


def train(run: TrainingRun[State, Result]) -> State:
    """Train to the end, or until a rank was told to stop; the state that comes back has been saved."""
    with run.stoppable():
        state = run.resume()
    if run.ranks.any(run.is_told()):  # told while it was being started
        return state
    run.make_up_for(state)
    done, total, shown = state.samples_seen, run.calendar.total, run.ranks.is_main
    with progress(total, run.kind, "images", done=done, enabled=shown) as bar:
        for batch in run.batches(state):
            before = state.samples_seen
            result = run.leave(state) if batch is None else run.step(state, batch)
            if result is None or result.asks_for(LEAVE):
                if state.step:
                    run.save(state, wait=True)
                break
            verdict = run.judge(state, result)
            run.recorder.step(state, batch, result, bar, event=verdict.event, score=verdict.score)
            verdict.check()
            if verdict.rollback:
                run.keep_for_replay(state, result, verdict)
                bar.advance(run.roll_back(state, verdict))
                continue
            run.look_after(state, result)

            if run.calendar.evaluation_due(before=before, after=state.samples_seen):
                run.evaluate(state)
            if verdict.event is not None:  # now: it may save, with what the evaluation found
                run.keep_for_replay(state, result, verdict)
            ending = result.asks_for(STOP) or state.unevaluated or run.is_finished(state)
            if ending or result.asks_for(SAVE) or run.save_due(state, before=before):
                run.save(state, wait=ending)
            if ending:
                break
    return state
