"""A monitor: the curves of a run as a CSV file that grows while it runs."""

from collections.abc import Sequence

from npd_ascend.monitors.registry import Point, Subject


class Csv:
    def __init__(self, subject: Subject):
        self._file = open(subject.folder / f"{subject.id}.csv", "a", encoding="utf-8")  # a resumed run goes on in it

    def log(self, points: Sequence[Point]) -> None:
        for p in points:
            self._file.writelines(f"{p.step},{tag},{value}\n" for tag, value in p.values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def curves(subject: Subject, project: str) -> Csv:
    return Csv(subject)
