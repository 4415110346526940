import numpy as np

from npd_ascend.study.dataset_cache import DatasetCache


def test_values_are_made_once_for_what_they_depend_on(tmp_path):
    calls = []

    def made(value):
        return lambda: calls.append(value) or {"accuracy": value, "hits": "01"}

    first = DatasetCache(tmp_path).values("start", ("model", 3), made(1 / 3))
    assert first == {"accuracy": 1 / 3, "hits": "01"}
    assert DatasetCache(tmp_path).values("start", ("model", 3), made(0.9)) == first  # to the last digit, from the file
    assert DatasetCache(tmp_path).values("start", ("model", 4), made(0.5))["accuracy"] == 0.5
    assert DatasetCache(tmp_path).values("other", ("model", 3), made(0.6))["accuracy"] == 0.6
    assert calls == [1 / 3, 0.5, 0.6]
    (file,) = (f for f in tmp_path.glob("start-*") if "0.333" in f.read_text())
    file.write_text(file.read_text().replace("0.333", "0.444"))
    assert DatasetCache(tmp_path).values("start", ("model", 3), made(0.7))["accuracy"] == 0.7


def test_answers_come_back_as_they_were(tmp_path):
    answers = [np.array([3, 1], np.int32), np.array([], np.int32)]
    DatasetCache(tmp_path).answers(("teacher",), lambda: (answers, 2.5))
    again, seconds = DatasetCache(tmp_path).answers(("teacher",), lambda: ([], 0.0))
    assert (
        seconds == 2.5
        and [a.tolist() for a in again] == [[3, 1], []]
        and {a.dtype for a in again} == {np.dtype("int32")}
    )
