"""Random checkpoints of each supported family, written by transformers, with the models that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_SPECIAL = {  # model_type, and what differs from the shape that all share
    "PanguEmbedded": ("llama", {"attention_bias": True}, {}),
    "llama": ("llama", {}, {}),
    "llama3": ("llama", {}, LLAMA3),
    "linear": ("llama", {}, LINEAR),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "qwen2": ("qwen2", {}, {}),
    "yarn": ("qwen2", {}, YARN),
    "qwen3": ("qwen3", {"head_dim": 64}, {}),
}
FAMILIES = tuple(_SPECIAL)
EOS = 4


def write(folder: Path, family: str, tied: bool, seed: int, vocab: int = 160, layers: int = 2) -> torch.nn.Module:
    """Writes a checkpoint with heads of 32 (Qwen3: 64) and returns transformers' own model of it, float32."""
    model_type, changes, rope = _SPECIAL[family]
    shape = dict(vocab_size=vocab, hidden_size=128, intermediate_size=160, num_hidden_layers=layers,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1,
                 rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e5, **rope}, bos_token_id=1,
                 eos_token_id=EOS, pad_token_id=None, tie_word_embeddings=tied)  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape | changes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "bias" in name:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder, max_shard_size="300KB" if family == "mistral" else "5GB")
    if family == "mistral":  # as in Mistral's folders: the weights once more, in its own format, here of no use
        save_file({"norm.weight": torch.zeros(1)}, folder / "consolidated.safetensors")
        (folder / "params.json").write_text('{"dim": 1}')
    if family == "PanguEmbedded":  # Llama with biases on q, k, v and o
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": family, "architectures": ["PanguEmbeddedForCausalLM"], "bias": True}
        (folder / "config.json").write_text(json.dumps(config))
    return model.eval()


def logprobs(model: torch.nn.Module, ids: list[int], vocabulary: int | None = None) -> torch.Tensor:
    """Log-prob of each token but the first, by transformers; logits from ``vocabulary`` on are padding."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1, :vocabulary].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
