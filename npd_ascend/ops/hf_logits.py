"""Logits of transformers' own implementation, for comparison: ``python -m npd_ascend.ops.hf_logits JOB.json``.

Runs in the rollout environment, which has torch. openPangu-Embedded is Llama with attention biases.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.selftest import sequences


def main() -> None:
    """Writes ``reference``, an .npz with ``s0``, ``s1``, ...: [length, V] float32 for each sequence of the test."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # the CPU will do, and torch-npu may be without an NPU
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["student"])
    spec, theirs = ModelSpec.from_folder(folder), ModelSpec.from_folder(Path(job["teacher"]))
    shape = dict(vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size,
                 num_hidden_layers=spec.num_layers, num_attention_heads=spec.num_heads,
                 num_key_value_heads=spec.num_kv_heads, head_dim=spec.head_dim, rms_norm_eps=spec.rms_norm_eps,
                 max_position_embeddings=spec.max_positions, tie_word_embeddings=spec.tie_embeddings,
                 rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta}, pad_token_id=None)
    if spec.model_type == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=spec.o_bias))
    weights = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    report = model.load_state_dict(weights, strict=False)
    missing = set(report.missing_keys) - {"lm_head.weight"}
    if missing:
        sys.exit(f"transformers misses {sorted(missing)[:3]} in {folder}")
    model.tie_weights()
    model = model.float().eval()
    with torch.no_grad():
        logits = [model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
                  for ids in sequences(min(spec.vocab_size, theirs.vocab_size))]
    np.savez(job["reference"], **{f"s{i}": x for i, x in enumerate(logits)})


if __name__ == "__main__":
    main()
