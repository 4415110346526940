"""A whole study: which arms are left, processes that run them, results, report."""

from __future__ import annotations

import itertools
import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock, Timeout

from npd_ascend.config.study import Arm, StudyConfig, arms_of
from npd_ascend.config.yaml_text import write_yaml
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import visible_npus
from npd_ascend.out_of_memory import free_bytes
from npd_ascend.pipeline.checks import check_config
from npd_ascend.store.atomic import write_bytes
from npd_ascend.study.inputs import check_inputs
from npd_ascend.study.job import ArmJob
from npd_ascend.study.method import changes, live_method
from npd_ascend.study.report.readings import MACHINE
from npd_ascend.study.results import Results, content, identity
from npd_ascend.workers.local import Events, LocalWorker
from npd_ascend.workers.session import PATIENT, Session, Work
from npd_ascend.workers.system import child_environment

_GUESS = {"stored": 45.0, "live": 120.0}
"""Seconds of an arm before any was measured."""
_MAX_DEATHS = 2
_MEMORY_SHARE = 0.7
"""Of the machine's memory, for all workers together: each keeps the models, engines and graphs of the arms that it has
had, and restarts between two arms when it holds more than its part of this."""
Kin = tuple[str, str, str]
"""Task, group and name of an arm."""


def chosen(study: StudyConfig, only: Sequence[str]) -> list[Arm]:
    """The arms of a study, or those that ``only`` names.

    Args:
        study: the study.
        only: ``group`` or ``group/arm`` each, and they run in this order, after the arms that make their models;
            empty: all.

    Raises:
        UserError: a name that no arm has, or an arm whose configuration does not hold.
    """
    arms = list(arms_of(study, changes))
    for name in only:
        if not any(name in (a.group, f"{a.group}/{a.name}") for a in arms):
            raise UserError(f"--only {name}: there is no such group or arm; groups: {', '.join(study.groups)}")
    if not only:
        return arms
    place = {a.key: next((i for i, n in enumerate(only) if n in (a.group, f"{a.group}/{a.name}")), -1) for a in arms}
    return with_makers(sorted((a for a in arms if place[a.key] >= 0), key=lambda a: place[a.key]))


def with_makers(arms: Sequence[Arm]) -> list[Arm]:
    """The arms, each after those that make its models."""
    out: dict[str, Arm] = {}
    for arm in arms:
        out |= {a.key: a for a in [*with_makers([*arm.makers.values()]), arm] if a.key not in out}
    return [*out.values()]


def describe(study: StudyConfig, only: Sequence[str] = ()) -> str:
    """What would run, and how long it may take; writes nothing."""
    results = Results(study.study.dir)
    arms = chosen(study, only)
    left = _left(results, arms)
    lines = [f"{len(arms)} arms, {len(left)} to run, in {study.study.dir}"]
    estimate = Estimate(results)
    serves = sources(arms)
    run: list[Arm] = []
    for arm in arms:
        what = f"about {estimate(arm):.0f} s" if arm in left else "done"
        if arm in left and (same := serves[arm.key]) is not arm:
            what = f"the same run as {same.key}"
        elif arm in left:
            run.append(arm)
        given = "".join(f", {role} from {maker.key}" for role, maker in arm.makers.items())
        lines.append(f"  {arm.key:44s} {arm.method:10s} {what}{', alone' if arm.timed else ''}{given}")
    lines.append(
        f"{len(run)} runs, about {estimate.all(run, study.study.workers) / 60:.0f} min, a guess before any has run"
    )
    return "\n".join(lines)


class Estimate:
    """Seconds that an arm takes: as measured for its like, else a guess."""

    def __init__(self, results: Results):
        self._known: dict[str, list[float]] = {}
        for key, seconds in results.seconds().items():
            self.add(key, seconds)

    def add(self, key: str, seconds: float) -> None:
        """Takes in a finished arm."""
        task, group, name, _ = key.split("/")
        for k in (f"{task}/{group}/{name}", f"{task}/{group}", task):
            self._known.setdefault(k, []).append(seconds)

    def __call__(self, arm: Arm) -> float:
        for k in (f"{arm.task}/{arm.group}/{arm.name}", f"{arm.task}/{arm.group}", arm.task):
            if k in self._known:
                return sum(self._known[k]) / len(self._known[k])
        return _GUESS["live" if live_method(arm.method) else "stored"]

    def all(self, arms: Sequence[Arm], workers: int) -> float:
        """Seconds for all of them."""
        return sum(self(a) / (1 if a.timed else workers) for a in arms)


def conduct(study: StudyConfig, only: Sequence[str] = (), say: Callable[[str], None] = print) -> int:
    """Runs what is left of a study and writes its report.

    Args:
        study: the study.
        only: see ``chosen``.
        say: called with one line an arm.

    Returns:
        Number of arms that failed; each says why.

    Raises:
        UserError: another study is at work there, the configuration does not hold, or models or prompts have changed
            since the study began.
    """
    root, results = study.study.dir, Results(study.study.dir)
    arms = chosen(study, only)
    for config in {repr(a.config.models): a.config for a in arms}.values():
        check_config(config)
    lock = _lock(root)
    try:
        check_inputs(root, arms, begun=bool(results.finished()))
        resolved = root / "study.yaml"
        write_bytes(resolved, write_yaml(study.model_dump(mode="json")).encode())
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {len(visible_npus()) or 'no'} NPU"
        write_bytes(root / MACHINE, machine.encode())
        everything = list(arms_of(study, changes))
        results.drop({a.key: identity(a) if results.whole(a) else "" for a in everything})
        share(results, everything, arms)
        left = _left(results, arms)
        serves = sources(left)
        own = [a for a in left if serves[a.key] is a]
        twins = [a for a in left if serves[a.key] is not a]
        say(
            f"study {root}: {len(arms)} arms, {len(left)} to run"
            + (f", {len(twins)} of them served by others that do the same" if twins else "")
        )
        progress = _Progress(results, own, study.study.workers, say)

        def phase(part: list[Arm], workers: int) -> int:
            return _phase(part, min(workers, len(part)), resolved, results, progress) if part else 0

        def run(part: list[Arm]) -> int:
            failed = 0
            for level in sorted({a.level for a in part}):
                ready = []
                for arm in (a for a in part if a.level == level):
                    if lost := [m.key for m in arm.makers.values() if not results.whole(m)]:
                        progress.failed(arm, f"{' and '.join(lost)} has made no student")
                        failed += 1
                    else:
                        ready.append(arm)
                failed += phase([a for a in ready if not a.timed], study.study.workers)
                failed += phase([a for a in ready if a.timed], 1)
            return failed

        failed = run(own)
        share(results, own, twins)
        orphans = _left(results, twins)  # whose run has failed
        progress.expect(orphans)
        failed += run(orphans)
        _report(root, say)
        return failed
    finally:
        lock.release()


def _phase(arms: list[Arm], workers: int, resolved: Path, results: Results, progress: _Progress) -> int:
    """Runs arms on so many workers; returns how many failed."""
    waiting, lock = list(arms), threading.Lock()
    limit = _MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / workers
    team = [_Worker(i, workers, resolved, limit) for i in range(workers)]

    def serve(worker: _Worker) -> int:
        failed = 0
        while True:
            with lock:
                if not waiting:
                    return failed
                worker.make_room()
                arm = waiting.pop(next_for(worker.done, team_done(team), waiting))
                worker.done.add(kin(arm))
            text = worker.run(arm)
            with lock:
                if text:
                    failed += 1
                    progress.failed(arm, text)
                else:
                    results.take(arm)
                    progress.done(arm)

    with ThreadPoolExecutor(workers) as threads:
        try:
            return sum(threads.map(serve, team))
        finally:
            waiting.clear()
            for worker in team:
                worker.session.close()


def next_for(own: Collection[Kin], others: Collection[Kin], waiting: Sequence[Arm]) -> int:
    """Which arm a worker takes next. A process compiles an arm's graphs once for all seeds, so within the group that
    is in line it takes what it has compiled already, else what nobody has, else the first.

    Args:
        own: kin of the arms that this worker has had.
        others: kin of the arms that any worker has had.
        waiting: not empty, in the order of the study.

    Returns:
        Its place in ``waiting``.
    """
    line = [i for i, _ in enumerate(itertools.takewhile(lambda a: a.group == waiting[0].group, waiting))]
    kins = {i: kin(waiting[i]) for i in line}
    compiled = (i for i, k in kins.items() if k in own)
    new = (i for i, k in kins.items() if k not in others)
    return next(itertools.chain(compiled, new), 0)


def kin(arm: Arm) -> Kin:
    """What arms that differ in their seed alone have in common."""
    return arm.task, arm.group, arm.name


def team_done(team: Sequence[_Worker]) -> set[Kin]:
    """Kin of all arms that were given out."""
    return {k for w in team for k in w.done}


class _Worker:
    """One process that runs arms."""

    def __init__(self, index: int, of: int, resolved: Path, limit: float):
        self.index, self._of, self._resolved, self._limit = index, of, resolved, limit
        self.done: set[Kin] = set()
        self._deaths = 0
        self.session = Session("study", self._start)

    def run(self, arm: Arm) -> str:
        """Runs an arm; returns why it failed, or nothing.

        Raises:
            UserError: processes die again and again.
        """
        job = ArmJob(fingerprint="", study=self._resolved, arm=arm.key, worker=self.index)
        try:
            (text,) = self.session.do(Work("study", job, "", PATIENT))
        except UserError as e:
            self._deaths += 1
            self.done.clear()
            if self._deaths > _MAX_DEATHS:
                raise
            return str(e)
        return str(text)

    def make_room(self) -> None:
        """Another process in the place of one that holds too many models and graphs: more than its share, of the
        machine's memory or of what is left of it beside others."""
        memory, free = self.session.memory, free_bytes()
        if memory > min(self._limit, _MEMORY_SHARE * (memory + free) if free else self._limit):
            self.session.leave()
            self.done.clear()

    def _start(self, index: int, events: Events) -> LocalWorker:
        python = Environments.find().mindspore
        cores = str(max(1, len(os.sched_getaffinity(0)) // self._of))
        return LocalWorker(
            index,
            [str(python), "-m", "npd_ascend.workers.process"],
            child_environment(python, OMP_NUM_THREADS=cores),
            self._resolved.parent / "logs" / f"worker-{self.index}.log",
            events,
        )


class _Progress:
    """Says what has been done and how long the rest may take."""

    def __init__(self, results: Results, left: Sequence[Arm], workers: int, say: Callable[[str], None]):
        self._results, self._left, self._workers, self._say = results, list(left), workers, say
        self._total, self._estimate, self._start = len(left), Estimate(results), time.monotonic()

    def expect(self, arms: Sequence[Arm]) -> None:
        """More arms are to run."""
        self._left += arms
        self._total += len(arms)

    def done(self, arm: Arm) -> None:
        """An arm has finished."""
        seconds = self._results.seconds().get(arm.key, 0.0)
        self._estimate.add(arm.key, seconds)
        self._tell(arm, f"{seconds:.0f} s")

    def failed(self, arm: Arm, text: str) -> None:
        """An arm has failed."""
        self._tell(arm, f"FAILED: {text}")

    def _tell(self, arm: Arm, text: str) -> None:
        self._left.remove(arm)
        n = self._total - len(self._left)
        minutes = (time.monotonic() - self._start) / 60
        rest = self._estimate.all(self._left, self._workers) / 60
        self._say(f"[{n}/{self._total}, {minutes:.0f} min, about {rest:.0f} to go] {arm.key}: {text}")


def sources(arms: Sequence[Arm]) -> dict[str, Arm]:
    """Whose run serves each arm, by key: its own, or that of one that does the same.

    A timed arm always runs itself, and its run serves others rather than the other way round.
    """
    first: dict[str, Arm] = {}
    out = {}
    for arm in sorted(arms, key=lambda a: (not a.timed, not a.kept, -a.evaluations)):
        same = first.setdefault(content(arm), arm)
        out[arm.key] = same if measures(same, arm) and not arm.timed else arm
    return out


def measures(source: Arm, arm: Arm) -> bool:
    """Whether a run of ``source`` measures all that ``arm`` asks for, at its points too, and keeps its student."""
    more = source.exposure >= arm.exposure and source.kept >= arm.kept
    return more and source.evaluations % arm.evaluations == 0


def share(results: Results, done: Sequence[Arm], arms: Sequence[Arm]) -> list[Arm]:
    """Serves arms from those of ``done`` that have finished and do the same; returns those that were."""
    left, finished = _left(results, arms), results.finished()
    done = [s for s in done if finished.get(s.key) == identity(s)]
    served = []
    for arm in left:
        for source in done:
            if content(source) == content(arm) and measures(source, arm) and not arm.timed:
                results.share(source, arm)
                served.append(arm)
                break
    return served


def _left(results: Results, arms: Sequence[Arm]) -> list[Arm]:
    finished = results.finished()
    return [a for a in arms if finished.get(a.key) != identity(a) or not results.whole(a)]


def _lock(root: Path) -> FileLock:
    lock = FileLock(str(root / ".lock"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{root}: another study is at work there; wait for it, or use another study.dir") from None
    except OSError as e:
        raise UserError(f"{root}: cannot write there ({e.strerror}); choose another study.dir") from None
    return lock


def _report(root: Path, say: Callable[[str], None]) -> None:
    try:
        from npd_ascend.study.report import build  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return
    say(f"report: {build(root)}")
