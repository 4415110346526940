"""metrics.jsonl as TensorBoard events, for those who watch many runs side by side."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.errors import UserError
from npd_ascend.report.collect import collect

_TAGS = {
    "train": {"loss": "loss/total", "ce": "loss/ce", "kd": "loss/kd", "grad_norm": "train/grad_norm", "lr": "train/lr",
              "progress": "train/epoch"},
    "lag": {"forward": "lag/forward", "reverse": "lag/reverse"},
}


def export(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the run's training, lag and accuracy curves as scalar events; event files that ``out`` holds are replaced.

    Args:
        run_dir: the run directory.
        out: folder for the event file; ``<run_dir>/tensorboard`` when None.

    Returns:
        The folder, for ``tensorboard --logdir``.

    Raises:
        UserError: tensorboard is not installed, or ``run_dir`` holds no run.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise UserError("TensorBoard events need the tensorboard package, which is not installed: pip install "
                        "'npd-ascend[tensorboard]', or leave report.tensorboard off") from None
    run = collect(Path(run_dir))
    out = Path(out) if out else run.root / "tensorboard"
    for old in out.glob("events.out.tfevents.*"):
        old.unlink()
    writer = EventFileWriter(str(out))
    try:
        for kind, tags in _TAGS.items():
            for row in getattr(run, kind):
                values = [Summary.Value(tag=tag, simple_value=row[key]) for key, tag in tags.items() if key in row]
                if "step" in row and values:
                    writer.add_event(Event(wall_time=row.get("time", 0.0), step=int(row["step"]),
                                           summary=Summary(value=values)))
        for e in run.evaluations:
            if e.step is not None:
                value = Summary.Value(tag="accuracy", simple_value=e.accuracy)
                writer.add_event(Event(step=int(e.step), summary=Summary(value=[value])))
    finally:
        writer.close()
    return out
