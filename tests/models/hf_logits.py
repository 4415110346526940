"""Run by the rollout environment's interpreter: reference logits of transformers for single sequences.

usage: hf_logits.py CHECKPOINT SEQUENCES.json OUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

folder, sequences, out = map(Path, sys.argv[1:])
config = json.loads((folder / "config.json").read_text())
qwen = config["model_type"] == "qwen2"
keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "head_dim", "tie_word_embeddings")
kept = {k: config[k] for k in keys if k in config and not (qwen and k == "head_dim")}
kept["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
if qwen:
    model = Qwen2ForCausalLM(Qwen2Config(**kept, pad_token_id=None))
else:
    bias = config.get("bias", config.get("attention_bias", False))
    model = LlamaForCausalLM(LlamaConfig(**kept, attention_bias=bias, pad_token_id=None))
weights = {}
for file in folder.glob("*.safetensors"):
    weights |= {k: v.float() for k, v in load_file(file).items()}
report = model.load_state_dict(weights, strict=False)
assert not report.unexpected_keys and set(report.missing_keys) <= {"lm_head.weight"}, report
model.tie_weights()
model.float().eval()
with torch.no_grad():
    logits = [model(torch.tensor([ids])).logits[0].numpy() for ids in json.loads(sequences.read_text())]
np.savez(out, **{f"s{i}": x for i, x in enumerate(logits)})
