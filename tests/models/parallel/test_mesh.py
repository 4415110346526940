"""Where the ranks of a grid stand."""

import pytest

pytest.importorskip("mindspore")

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.models.parallel import mesh as module  # noqa: E402
from npd_ascend.models.parallel.collectives import ALONE  # noqa: E402
from npd_ascend.models.parallel.mesh import DeviceMesh  # noqa: E402

pytestmark = pytest.mark.mindspore
SIZE = 12


@pytest.fixture
def grid(monkeypatch):
    """(tensor, context) -> the group of each of 12 ranks, and the ranks of each communication group."""

    def make(*cuts):
        made, groups = {}, []
        monkeypatch.setenv("MS_ROLE", "MS_WORKER")
        monkeypatch.setattr(module, "init", lambda: None)
        monkeypatch.setattr(module, "get_group_size", lambda: SIZE)
        monkeypatch.setattr(module, "create_group", made.__setitem__)
        monkeypatch.setattr(module, "AllReduce", lambda group: None)
        for rank in range(SIZE):
            monkeypatch.setattr(module, "get_rank", lambda r=rank: r)
            monkeypatch.setattr(module, "_made", set())
            groups.append(DeviceMesh(Device(), *cuts))
        return groups, {**made, module.GlobalComm.WORLD_COMM_GROUP: list(range(SIZE)), "": None}

    return make


def test_data_by_context_by_model(grid):
    groups, made = grid(2, 3)
    for rank, g in enumerate(groups):
        d, c, t = rank // 6, rank % 6 // 2, rank % 2
        assert (g.data.rank, g.data.size) == (d, 2)
        assert (g.context.rank, g.context.size) == (c, 3)
        assert (g.model.rank, g.model.size) == (t, 2)
        assert made[g.model.name] == [6 * d + 2 * c, 6 * d + 2 * c + 1]
        assert made[g.context.name] == [6 * d + t + 2 * i for i in range(3)]
        assert made[g.replicas.name] == list(range(t, SIZE, 2)) and g.replicas.rank == rank // 2


@pytest.mark.parametrize("cuts", [(1, 1), (12, 1), (1, 12)])
def test_the_world_is_no_new_group(grid, cuts):
    groups, made = grid(*cuts)
    g = groups[5]
    group = {(1, 1): g.replicas, (12, 1): g.model, (1, 12): g.context}[cuts]
    assert (group.rank, group.size) == (5, 12) and len(made) == 2
    assert g.model == ALONE or cuts[0] == 12


def test_what_does_not_fill_groups(grid):
    with pytest.raises(UserError, match=r"12 process\(es\) cannot .* multiple of 8"):
        grid(4, 2)
