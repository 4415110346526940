"""Shards shared by workers: each goes to one, and what a lost one had is free again."""

import threading

import pytest

from npd_ascend.errors import UserError
from npd_ascend.store.claims import Claims, Tickets


def test_each_shard_goes_to_one_worker(tmp_path):
    """Eight workers at once."""
    tickets = Tickets(tmp_path, lambda: set(range(200)))
    taken = [[] for _ in range(8)]

    def work(i, claims):
        while (index := claims.take()) is not None:
            taken[i].append(index)

    threads = [threading.Thread(target=work, args=(i, Claims(tickets.admit(i), ()))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for one in taken for i in one) == list(range(200))
    assert all(one == sorted(one) for one in taken) and not tickets.free


def test_what_a_lost_worker_had_is_free_but_for_what_it_has_made(tmp_path):
    missing = {3, 4, 7, 12}
    tickets = Tickets(tmp_path, lambda: missing)
    lost, other = (Claims(tickets.admit(i), ()) for i in (0, 1))
    assert (lost.take(), other.take(), lost.take()) == (3, 4, 7)
    missing.discard(3)
    lost.release(3)
    tickets.expel(0)
    assert tickets.free == {7, 12} and tickets.workers == {1}
    assert lost.take() is None
    missing.discard(7)  # it was made all the same, just before
    again = Claims(tickets.admit(0), ())
    assert (other.take(), again.take(), other.take()) == (7, 12, None)
    tickets.admit(0)  # another process in its place
    assert tickets.free == {12}
    tickets.close()
    assert not list(tmp_path.iterdir())


def test_a_new_owner_shuts_out_the_workers_of_an_old_one(tmp_path):
    old = Claims(Tickets(tmp_path, lambda: {0, 1}).admit(0), ())
    assert old.take() == 0
    tickets = Tickets(tmp_path, lambda: {0, 1})
    assert old.take() is None and tickets.free == {0, 1}
    new = Claims(tickets.admit(0), ())
    assert (new.take(), new.take(), new.take()) == (0, 1, None)


def test_alone_and_nowhere(tmp_path):
    claims = Claims(None, [2, 0, 5])
    assert claims.any and [claims.take() for _ in range(4)] == [0, 2, 5, None] and not claims.any
    claims.release(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Tickets(tmp_path / "file" / "out", lambda: {1})
