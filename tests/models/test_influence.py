"""Block influence, layer by layer, against hidden states of transformers."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.models.influence import block_influence  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
ROW = 64
_TRANSFORMERS = """
import json, sys
from pathlib import Path
import torch
from npd_ascend.ops.hf_logits import load

job = json.loads(Path(sys.argv[1]).read_text())
for folder in job["folders"]:
    model, similar = load(Path(folder)), {}
    def keep(number):
        def hook(module, args, kwargs, out):
            before = (args[0] if args else kwargs["hidden_states"]).double()
            after = (out[0] if isinstance(out, tuple) else out).double()
            similar.setdefault(number, []).append(torch.nn.functional.cosine_similarity(before, after, -1).reshape(-1))
        return hook
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(i), with_kwargs=True)
    with torch.no_grad():
        for ids in job["texts"]:
            model(torch.tensor(ids)[None])
    print(json.dumps([1 - float(torch.cat(similar[i]).mean()) for i in sorted(similar)]))
"""


def test_like_transformers(engines, checkpoint, tmp_path):
    """All features of the network, packed rows and padding among them."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 97, n).astype(np.int32) for n in (40, 7, 64, 1, 22)]
    folders = [
        checkpoint(family, name=family, num_hidden_layers=layers, shards=shards, dtype=dtype)
        for family, layers, shards, dtype in (("pangu", 3, 3, "BF16"), ("qwen3_tied", 4, 1, "F32"))
    ]
    (tmp_path / "job.json").write_text(
        json.dumps({"folders": list(map(str, folders)), "texts": [t.tolist() for t in texts]})
    )
    (tmp_path / "script.py").write_text(_TRANSFORMERS)
    said = subprocess.run(
        [engines.rollout, tmp_path / "script.py", tmp_path / "job.json"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for folder, line in zip(folders, said, strict=False):
        finished: list[int] = []
        ours = block_influence(folder, texts, Device(), ROW, finished.append)
        assert finished == list(range(len(ours)))
        assert ours == pytest.approx(json.loads(line), abs=1e-5) and ours.max() > 0.01


def test_a_layer_that_adds_nothing_has_none(checkpoint):
    from safetensors.numpy import load_file, save_file

    folder = checkpoint("llama", num_hidden_layers=3)
    tensors = load_file(folder / "model.safetensors")
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.1.{part}.weight"][:] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = block_influence(folder, [np.arange(1, 30, dtype=np.int32)], Device(), ROW)
    assert found[1] == pytest.approx(0, abs=1e-6) and min(found[0], found[2]) > 1e-3
