"""A whole run of an Instruct teacher and a base student as they are released: two ends, two widths, two templates; and
what is exported stops where training stopped, for whoever is given that folder alone."""

import json
import subprocess
import sys

import pytest
import yaml

from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.mindspore, pytest.mark.timeout(900)]
pytest.importorskip("mindspore")

END, TEXT = 292, 290
_GENERATE = """if True:
    import json, sys
    from npd_ascend.rollout.engine import set_environment
    set_environment("cpu")
    import transformers
    from vllm import LLM, SamplingParams

    chat = [{"role": "user", "content": "How many?"}]

    def generate(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1]:].tolist()
        return tokenizer.decode(ids["input_ids"][0]), out

    export, student = sys.argv[1:]
    llm = LLM(export, max_model_len=128, dtype="float32", kv_cache_memory_bytes=2**26, enforce_eager=True)
    params = llm.get_default_sampling_params()
    params.max_tokens, params.temperature = 12, 0
    answer = llm.chat(chat, params, use_tqdm=False)[0].outputs[0]
    print(json.dumps([generate(student)[1], *generate(export), list(answer.token_ids), answer.finish_reason]))
"""


@pytest.fixture(scope="module")
def finished(engines, qwen_pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    teacher, student = qwen_pair(folder)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"How many {i}?"}) + "\n" for i in range(12)))
    (folder / "run.yaml").write_text(yaml.safe_dump({
        "run": {"dir": str(folder / "run")}, "models": {"teacher": str(teacher), "student": str(student)},
        "data": {"prompts": [str(folder / "prompts.jsonl")]},
        "rollout": {"max_new_tokens": 12, "shard_size": 6, "max_num_seqs": 8, "kv_cache_gib": 0.1},
        "annotate": {"row_length": 128, "k": 4}, "select": {"lower": None, "upper": None}, "pack": {"row_length": 128},
        "train": {"epochs": 2, "lr": 1e-5, "min_lr": 1e-6, "global_batch": 2, "vocab_chunk_rows": 64},
        "sync": {"refreshes": 0, "probe_samples": 4, "lag_every": 0}}))
    done = subprocess.run([sys.executable, "-m", "npd_ascend.cli", "run", str(folder / "run.yaml")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(folder / "run"), student, done.stdout


def test_run_takes_the_pair_and_says_how(finished):
    run, _, out = finished
    assert "the teacher's" in out and "renders the input of both models" in out and "stop tokens differ" in out
    rows = Dataset.open(run.generation(0).rollouts, "rollouts").read_all().to_pylist()
    assert len(rows) == 12 and {r["finish_reason"] for r in rows} == {"stop"}
    assert all(r["response_ids"][-1] == END and TEXT not in r["response_ids"] for r in rows)


def test_snapshot_and_export_say_where_the_student_ends(finished):
    run, _, _ = finished
    for folder in (run.generation(0).next_snapshot, run.export):
        for name in ("config.json", "generation_config.json"):
            assert json.loads((folder / name).read_text())["eos_token_id"] == [END, TEXT]
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokenizer["eos_token"] == "<|im_end|>" and "You are Qwen." in tokenizer["chat_template"]


def test_transformers_and_vllm_stop_where_training_stopped(finished, engines):
    run, student, _ = finished
    command = [engines.rollout, "-c", _GENERATE, str(run.export), str(student)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    own, text, ids, answer, finish = json.loads(done.stdout.splitlines()[-1])
    assert text == ("<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
                    "<|im_start|>assistant\n")
    assert ids == answer and ids[-1] == END and len(ids) < 12 and finish == "stop"
    # The student's own files do not make it stop there: what the export says is not what was there anyway.
    assert END in own[:-1] and own[-1] == TEXT
