"""Run by the rollout environment's interpreter: vLLM and transformers answer, given an exported folder alone.

usage: serve.py EXPORT QUESTIONS.json ANSWERS.json

QUESTIONS: ``texts``; ``chat``, whether they go through the folder's template; ``most``, tokens of an answer; ``ids``,
which take the place of texts where the folder's tokenizer is a class of its own: neither loads that without running the
folder's code.
"""

import json
import sys
from pathlib import Path

from npd_ascend.rollout.engine import set_environment

set_environment("cpu")  # read by torch when it is imported

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: E402
from vllm import LLM  # noqa: E402

from npd_ascend.rollout import plugin  # noqa: E402
from npd_ascend.rollout.pangu import MODEL_TYPE  # noqa: E402


def by_vllm(folder, asked):
    by_ids = bool(asked["ids"])
    llm = LLM(
        folder,
        max_model_len=256,
        max_num_seqs=8,
        dtype="float32",
        kv_cache_memory_bytes=2**26,
        enforce_eager=True,
        skip_tokenizer_init=by_ids,
    )
    params = llm.get_default_sampling_params()
    params.max_tokens, params.temperature, params.logprobs, params.detokenize = asked["most"], 0, 0, not by_ids
    if by_ids:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked["ids"]], params, use_tqdm=False)
    elif asked["chat"]:
        outputs = llm.chat([[{"role": "user", "content": t}] for t in asked["texts"]], params, use_tqdm=False)
    else:
        outputs = llm.generate(asked["texts"], params, use_tqdm=False)
    return [
        {
            "prompt": list(o.prompt_token_ids),
            "ids": list(o.outputs[0].token_ids),
            "finish": o.outputs[0].finish_reason,
            "logprobs": [next(iter(p.values())).logprob for p in o.outputs[0].logprobs],
        }
        for o in outputs
    ]


def prompts(folder, asked):
    if asked["ids"]:
        return asked["ids"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if asked["chat"]:
        return [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": t}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            for t in asked["texts"]
        ]
    return [tokenizer(t)["input_ids"] for t in asked["texts"]]


def by_transformers(folder, asked):
    # transformers has no class for openPangu: it is Llama with biases on q, k, v and o.
    config = AutoConfig.from_pretrained(folder)
    kind = LlamaForCausalLM if config.model_type == MODEL_TYPE else AutoModelForCausalLM
    model = kind.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    out = []
    for ids in prompts(folder, asked):
        with torch.no_grad():
            whole = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=asked["most"],
                do_sample=False,
            )
            logprobs = model(whole).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
        answer = whole[0, len(ids) :]
        out.append(
            {"prompt": ids, "ids": answer.tolist(), "logprobs": logprobs.gather(1, answer[:, None])[:, 0].tolist()}
        )
    return out


def main(folder, questions, answers):
    plugin.register()
    asked = json.loads(Path(questions).read_text())
    found = {"vllm": by_vllm(folder, asked), "transformers": by_transformers(folder, asked)}
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
