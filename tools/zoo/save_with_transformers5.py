"""Run by the rollout environment's interpreter: loads a checkpoint and saves it as transformers 5 does.

usage: save_with_transformers5.py FOLDER OUT
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def main(folder: Path, out: Path) -> None:
    parts = len(list(folder.glob("*.safetensors")))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.save_pretrained(out, **({"max_shard_size": "60KB"} if parts > 1 else {}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = json.loads((folder / "tokenizer_config.json").read_text())
    generic = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        **{n: names[n] for n in ("bos_token", "eos_token", "pad_token", "unk_token") if names.get(n)},
    )
    generic.chat_template = tokenizer.chat_template
    generic.save_pretrained(out)
    saved = json.loads((out / "tokenizer_config.json").read_text()), json.loads((out / "config.json").read_text())
    assert saved[0]["tokenizer_class"] == "TokenizersBackend" and "rope_parameters" in saved[1] and "dtype" in saved[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
