"""Run by the rollout environment's interpreter: reference logits of transformers for single sequences.

usage: hf_logits.py SEQUENCES.json CHECKPOINT...   (writes CHECKPOINT/logits.npz)
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM


def load(folder):
    """openPangu-Embedded is Llama with attention biases, so transformers' own class serves as its reference."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "PanguEmbedded":
        config |= {"model_type": "llama", "attention_bias": config["bias"]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config | {"pad_token_id": None}))
    weights = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    report = model.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys and set(report.missing_keys) <= {"lm_head.weight"}, report
    model.tie_weights()
    return model.float().eval()


sequences = json.loads(Path(sys.argv[1]).read_text())
for checkpoint in map(Path, sys.argv[2:]):
    net = load(checkpoint)
    with torch.no_grad():
        logits = [net(torch.tensor([ids])).logits[0].numpy() for ids in sequences]
    np.savez(checkpoint / "logits.npz", **{f"s{i}": x for i, x in enumerate(logits)})
