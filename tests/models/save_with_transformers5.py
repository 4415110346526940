"""Run by the rollout environment's interpreter: what transformers 5 saves, and what it says of a folder.

usage: save_with_transformers5.py save OUT TOKENIZER...      (llama, qwen2 models; tokenizers loaded and saved again)
       save_with_transformers5.py read FOLDER OUT.npz        (logits, token ids and special tokens of a checkpoint)
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.samples import IDS, TEXTS  # noqa: E402

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def save(out, tokenizers):
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_theta=5e5, tie_word_embeddings=True, initializer_range=0.2))
    qwen2 = Qwen2ForCausalLM(Qwen2Config(**SHAPE, rope_theta=1e6, initializer_range=0.2))
    for name, model in (("llama", llama), ("qwen2", qwen2)):
        model.to(torch.bfloat16).save_pretrained(out / name)
    for source in tokenizers:
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(out / source.name)
        generic = PreTrainedTokenizerFast(
            tokenizer_file=str(source / "tokenizer.json"),
            eos_token=tokenizer.eos_token,
            additional_special_tokens=["<tool>", tokenizer.eos_token],
        )
        generic.chat_template = tokenizer.chat_template
        generic.save_pretrained(out / f"{source.name}-generic")


def read(folder, out):
    found = {}
    if (folder / "model.safetensors").is_file():
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            found["logits"] = net(torch.tensor([IDS])).logits[0].numpy()
        found["dtype"] = str(AutoConfig.from_pretrained(folder).dtype)
    if (folder / "tokenizer.json").is_file():
        t = AutoTokenizer.from_pretrained(folder)
        found["tokens"] = json.dumps([[t(x, add_special_tokens=s)["input_ids"] for x in TEXTS] for s in (True, False)])
        found["special"] = json.dumps([t.bos_token, t.eos_token, t.pad_token, sorted(t.all_special_tokens)])
        found["template"] = t.chat_template or ""
    np.savez(out, **found)


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])
    else:
        for folder, out in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
            read(Path(folder), Path(out))
