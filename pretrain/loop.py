"""The training loop. It reads like the plan of a run; whoever it calls knows the details."""

from __future__ import annotations

from coatnet.runtime.progress import progress
from coatnet.runtime.stop import StopFlag
from pretrain.parts import Parts
from pretrain.state import State

# What a rank may ask of all at the end of a step; one bit each.
STOP, SAVE = 1, 2


def train(run: Parts, stop: StopFlag) -> State:
    """Train to the end, or until a rank was told to stop; the state that comes back has been saved."""
    state = run.resume()
    if run.ranks.any(stop.requested):  # told while it was being started
        return state
    with progress(
        run.calendar.total, "pretrain", "images", done=state.samples_seen, enabled=run.ranks.is_main
    ) as bar:
        for batch in run.stream.follow(state):
            before = state.samples_seen
            result = run.trainer.step(
                batch,
                samples_seen=before,
                learning_rate=run.calendar.learning_rate(before + batch.step_samples(run.ranks.world_size)),
                wish=STOP * stop.requested + SAVE * run.checkpoints.time_is_up,
                veto=run.guard.veto(state),
                label=run.label(before),
            )
            state.advance(samples=result.samples, applied=result.applied, digest=result.digest)
            verdict = run.guard.judge(result, state)
            run.recorder.step(state, batch, result, bar, event=verdict.event, score=verdict.score)
            if verdict.event is not None:
                run.keep_for_replay(state, result, verdict)
            if verdict.rollback:
                run.roll_back(state, verdict)
                continue
            run.look_after(state, result)

            stopping = any(wish & STOP for wish in result.wishes)
            finished = state.samples_seen >= run.calendar.total
            if run.calendar.evaluation_due(before=before, after=state.samples_seen):
                run.evaluate(state)
            saving = any(wish & SAVE for wish in result.wishes)
            if stopping or saving or run.calendar.save_due(before=before, after=state.samples_seen):
                run.save(state, wait=stopping or finished)
            if stopping or finished:
                break
    return state
