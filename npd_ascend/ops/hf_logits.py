"""Logits of transformers' own implementation, for comparison: ``python -m npd_ascend.ops.hf_logits JOB.json``.

Runs in the rollout environment, which has torch. The model is built from the checkpoint's own ``config.json``, not from
what ``ModelSpec`` read of it.

Two of them: in the type that the device under test computes in, and in float64. How far transformers is from its own
float64 is what that type costs with these weights; hidden states of some models reach tens of thousands, where float32
is off by more than a tolerance for usual models allows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.models import tensorfile
from npd_ascend.models.families import family_of
from npd_ascend.models.hf_config import read_config
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.selftest import announce, sequences

_HEAD_ROWS = 8192


def load(folder: Path) -> Any:
    """The checkpoint as transformers' class, float32.

    Raises:
        SystemExit: transformers misses tensors, or does not know some.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_config(folder / "config.json") or {}
    config = family_of(config, str(folder)).transformers(config)
    config = {k: v for k, v in config.items() if k not in ("auto_map", "pad_token_id")}  # never code of the checkpoint
    # The eager one computes its softmax in float32 whatever the type.
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="sdpa"
    )
    model = model.float().eval()
    missing = {name for name, _ in model.named_parameters()}
    for file in sorted({e.path for e in tensorfile.entries(folder).values()}):  # one at a time: memory
        part = load_file(file)
        unknown = [
            n
            for n in model.load_state_dict(part, strict=False).unexpected_keys
            if not n.endswith("rotary_emb.inv_freq")
        ]
        if unknown:
            sys.exit(f"transformers does not know {sorted(unknown)[:3]} of {folder}")
        missing -= set(part)
    if missing - {"lm_head.weight"}:
        sys.exit(f"transformers misses {sorted(missing)[:3]} in {folder}")
    model.tie_weights()
    return model


def logits(model: Any, texts: list[Array]) -> list[Array]:
    """[length, V] float32 of each sequence, in the model's type."""
    import torch

    with torch.no_grad():
        return [model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().numpy() for ids in texts]


def exact_logits(model: Any, texts: list[Array]) -> list[Array]:
    """[length, V] float64 of each sequence. Takes the memory of one layer beyond the model.

    ``model.double()`` would not do: transformers' norms and rotary tables are computed in float32 whatever the type.
    """
    import torch

    inner, undo = model.model, []
    for layer in inner.layers:  # each is widened for the time of its own work
        undo += [
            layer.register_forward_pre_hook(lambda m, args: m.double() and None),
            layer.register_forward_hook(lambda m, args, out: m.float() and None),
        ]
    undo += [
        inner.embed_tokens.register_forward_hook(lambda m, args, out: out.double()),
        inner.rotary_emb.register_forward_hook(lambda m, args, out: _rotary(m, out[0].shape[1])),
    ]
    norms = [m for m in inner.modules() if type(m).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.forward = _wide_norm(norm)
    try:
        with torch.no_grad():
            return [
                _wide_head(
                    model, inner(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).last_hidden_state[0]
                )
                for ids in texts
            ]
    finally:
        for hook in undo:
            hook.remove()
        for norm in norms:
            del norm.forward


def _wide_norm(norm: Any) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        return x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight.double()

    return forward


def _rotary(embedding: Any, length: int) -> tuple[Any, Any]:
    """Cosine and sine tables [1, length, head_dim], float64."""
    import torch

    angles = torch.arange(length, dtype=torch.float64)[:, None] * embedding.inv_freq.double()
    angles = torch.cat([angles, angles], -1)[None]
    return angles.cos() * embedding.attention_scaling, angles.sin() * embedding.attention_scaling


def _wide_head(model: Any, hidden: Any) -> Array:
    """Rows of the head a few at a time: widened, a head of 150,000 ids takes gigabytes."""
    import torch

    weight = model.lm_head.weight
    return torch.cat(
        [hidden @ weight[i : i + _HEAD_ROWS].double().T for i in range(0, len(weight), _HEAD_ROWS)], -1
    ).numpy()


def main() -> None:
    """Writes ``reference``, an .npz with ``s0``, ``s1``, ... in the device's type and ``e0``, ``e1``, ... in float64,
    each [length, V], for each sequence of the test."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # the CPU will do, and torch-npu may be without an NPU
    import torch

    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["student"])
    spec, theirs = ModelSpec.from_folder(folder), ModelSpec.from_folder(Path(job["teacher"]))
    texts = sequences(min(spec.vocab_size, theirs.vocab_size))
    dtype = job["device"]["dtype"]
    announce("transformers loads the student")
    model = load(folder)
    announce("logits of transformers in float64")
    exact = exact_logits(model, texts)
    announce(f"logits of transformers in {dtype}")
    plain = logits(model.to(getattr(torch, dtype)), texts)
    np.savez(job["reference"], **{f"e{i}": x for i, x in enumerate(exact)}, **{f"s{i}": x for i, x in enumerate(plain)})


if __name__ == "__main__":
    main()
