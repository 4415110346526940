"""The export: equal to the last snapshot, or made again; and what is said of a snapshot that is damaged itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from npd_ascend.errors import CorruptSnapshot
from npd_ascend.models.convert import convert
from npd_ascend.pipeline.executor import Executor
from npd_ascend.pipeline.runner import ShardLost
from npd_ascend.store.atomic import write_sealed
from npd_ascend.store.identity import file_seals


def flip(path: Path) -> None:
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_export_is_made_kept_and_made_again(kit, tmp_path, capsys):
    executor = Executor(kit.config())
    last, run = executor.run_dir.generation(0), executor.run_dir
    shutil.copytree(kit.student, last.next_snapshot)
    write_sealed(last.snapshot_mark, {"fingerprint": "f", "files": file_seals(last.next_snapshot)})
    sound = file_seals(last.next_snapshot)

    executor._export(0)
    made = (run.export / "model.safetensors").stat().st_mtime_ns
    assert file_seals(run.export) == sound
    executor._export(0)
    assert (run.export / "model.safetensors").stat().st_mtime_ns == made and not capsys.readouterr().err

    flip(run.export / "model.safetensors")
    with pytest.raises(CorruptSnapshot, match=r"export: model.safetensors is damaged .* rebuilds it"):
        convert(run.export, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    executor._export(0)
    assert file_seals(run.export) == sound and "export is damaged: made again" in capsys.readouterr().err

    (run.export / "config.json").unlink()
    with pytest.raises(CorruptSnapshot, match="config.json cannot be read"):
        convert(run.export, tmp_path / "copy")
    flip(last.next_snapshot / "model.safetensors")
    with pytest.raises(ShardLost) as e:
        executor._export(0)
    executor._discard(e.value)
    assert "next is damaged: made again" in capsys.readouterr().err
    assert not list(run.root.rglob(".tmp-*"))
