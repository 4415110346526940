"""1F1B played through without processes: every meeting is met, nothing is used before it is there, nothing waits."""

import pytest

from npd_ascend.train.schedule_1f1b import Backward, Forward, MeetAfter, MeetBefore, one_forward_one_backward

PIPELINES = [(p, m) for p in range(1, 7) for m in range(1, 10)]


def play(stages, batches):
    """Runs all stages side by side, each until it waits; meetings take place when both neighbours have come to them.

    Returns:
        What each stage does, in order, and the most inputs that it holds at a time.
    """
    plans = [list(one_forward_one_backward(s, stages, batches)) for s in range(stages)]
    at = [0] * stages
    inputs = [set(range(batches)) if s == 0 else set() for s in range(stages)]  # the first reads its own
    gradients = [set() for _ in range(stages)]
    flying, most, last_made = [set() for _ in range(stages)], [0] * stages, [None] * stages
    while any(a < len(plan) for a, plan in zip(at, plans, strict=True)):
        moved = False
        for s, plan in enumerate(plans):
            while at[s] < len(plan) and isinstance(plan[at[s]], Forward | Backward):
                action, last = plan[at[s]], s == stages - 1
                assert action.batch in inputs[s]
                if isinstance(action, Forward):
                    flying[s].add(action.batch)
                else:
                    assert last or (action.batch in flying[s] and action.batch in gradients[s])
                    gradients[s].discard(action.batch)
                    inputs[s].remove(action.batch)
                    flying[s].discard(action.batch)
                last_made[s] = action
                held = flying[s] if s == 0 else inputs[s]
                most[s] = max(most[s], len(held), 1)
                at[s], moved = at[s] + 1, True
        for s in range(stages - 1):
            mine, theirs = (plans[x][at[x]] if at[x] < len(plans[x]) else None for x in (s, s + 1))
            if isinstance(mine, MeetAfter) and isinstance(theirs, MeetBefore):
                assert (mine.gives, mine.takes) == (theirs.takes, theirs.gives) != (None, None)
                if mine.gives is not None:
                    assert last_made[s] == Forward(mine.gives)
                    inputs[s + 1].add(mine.gives)
                    most[s + 1] = max(most[s + 1], len(inputs[s + 1]))
                if mine.takes is not None:
                    assert last_made[s + 1] == Backward(mine.takes)
                    gradients[s].add(mine.takes)
                at[s], at[s + 1], moved = at[s] + 1, at[s + 1] + 1, True
        assert moved, f"deadlock: {[plan[a:a + 1] for a, plan in zip(at, plans, strict=True)]}"
    assert not any(gradients) and not any(inputs) and not any(flying)
    return plans, most


@pytest.mark.parametrize(("stages", "batches"), PIPELINES)
def test_every_send_meets_its_receive(stages, batches):
    plans, most = play(stages, batches)
    for s, plan in enumerate(plans):
        last = s == stages - 1
        assert [a.batch for a in plan if isinstance(a, Forward)] == ([] if last else list(range(batches)))
        assert [a.batch for a in plan if isinstance(a, Backward)] == list(range(batches))
        assert most[s] <= stages - s


def test_one_stage_meets_nobody():
    assert list(one_forward_one_backward(0, 1, 3)) == [Backward(0), Backward(1), Backward(2)]


def test_the_first_of_two_stages():
    assert list(one_forward_one_backward(0, 2, 2)) == [
        Forward(0), MeetAfter(gives=0), Forward(1), MeetAfter(gives=1, takes=0), Backward(0), MeetAfter(takes=1),
        Backward(1)]
