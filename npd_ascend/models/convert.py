"""``npd convert``: a checkpoint checked tensor by tensor and rewritten, in another type if asked for."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import DTYPES, checked, finite, rewrite
from npd_ascend.store.identity import check_seals


def convert(source: Path, target: Path, dtype: str | None = None) -> str:
    """Copies a checkpoint folder once every tensor has been found right.

    Args:
        source: Hugging Face folder, sharded or not.
        target: folder to make or replace; same files, same shards.
        dtype: ``float32``, ``bfloat16``, ``float16``, or None to keep each tensor's own.

    Returns:
        One line that says what was written.

    Raises:
        UserError: tensors missing, unknown, of the wrong shape, NaN or infinite; an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    source, target = Path(source), Path(target)
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: source and target are the same folder")
    check_seals(source)
    spec = ModelSpec.from_folder(source)
    found = checked(spec, source)
    rewrite(target, source, found, dtype, lambda name: finite(found[name]))
    return f"{target}: {spec.model_type}, {spec.parameters:,} parameters, {dtype or 'types as they were'}"
