"""What the fingerprints of steps depend on, and what is said between them; nothing is run."""

import json

import pyarrow as pa
import pytest

from npd_ascend import progress
from npd_ascend.config.load import parse_config
from npd_ascend.config.schema import EvaluateConfig
from npd_ascend.pipeline.executor import Executor
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.store.dataset import Dataset


@pytest.fixture
def made(qwen_pair, tmp_path):
    """``executor(**data)`` of a released pair, and its folders."""
    teacher, student = qwen_pair(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How many?"}\n')

    def executor(**data):
        return Executor(
            parse_config(
                {
                    "run": {"dir": str(tmp_path / "run")},
                    "models": {"teacher": str(teacher), "student": str(student)},
                    "data": {"prompts": [str(tmp_path / "prompts.jsonl")], **data},
                },
                "test",
            )
        )

    return executor, teacher, student


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_prompts_depend_on_templates_and_stop_ids_of_both_models(made, tmp_path):
    executor, teacher, student = made

    def prepared(**data):
        return executor(**data).steps.step("prepare").job.fingerprint

    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    seen = [prepared(), *(prepared(chat_template=c) for c in ("student", "teacher", str(tmp_path / "mine.jinja")))]
    (tmp_path / "mine.jinja").write_text("{{ messages[-1].content }}")
    seen.append(prepared(chat_template=str(tmp_path / "mine.jinja")))
    assert prepared() == seen[0]
    for path, values in (
        (teacher / "tokenizer_config.json", {"chat_template": "x"}),
        (teacher / "generation_config.json", {"eos_token_id": 292}),
        (student / "generation_config.json", {"eos_token_id": [292]}),
        (teacher / "config.json", {"eos_token_id": 290}),
    ):
        edit(path, **values)
        seen.append(prepared())
    assert len(set(seen)) == len(seen)
    edit(teacher / "config.json", hidden_act="gelu")  # says nothing of text
    assert prepared() == seen[-1]


def test_evaluation_of_a_checkpoint_does_not_ask_whether_the_teacher_fits(made):
    one = made[0]()
    config = one.config.model_copy(update={"evaluate": EvaluateConfig(prompts=one.config.data.prompts)})
    for alone in (False, True):
        steps = StepBuilder(config, one.run_dir, one.device, alone=alone)
        assert steps.step("prepare_eval").job.teacher_needed is not alone


@pytest.mark.parametrize("cut, said", [((2, 5), True), ((2, 3), False), ((9, 1), False)])
def test_rise_of_truncated_answers_is_said_when_the_rollout_is_there(made, monkeypatch, cut, said):
    events: list[dict] = []
    monkeypatch.setattr(progress, "_sink", events.append)
    one = made[0]()
    for generation, n in enumerate(cut):
        dataset = Dataset(one.run_dir.generation(generation).rollouts, "rollouts", "f")
        ids, none = pa.list_(pa.int32()), pa.nulls(10, pa.list_(pa.int32()))
        dataset.write_table(
            0,
            pa.table(
                {
                    "sample_id": range(10),
                    "prompt_index": range(10),
                    "path": pa.array([0] * 10, pa.int8()),
                    "response_ids": pa.array([[1]] * 10, ids),
                    "logprobs": pa.nulls(10, pa.list_(pa.float32())),
                    "label_ids": none,
                    "finish_reason": ["stop"] * 10,
                }
            ),
        )
        dataset.finish(1, truncated=n)
    one._compare_truncated(0)
    one._compare_truncated(1)
    assert [e["level"] for e in events] == ["warning"] * said
    assert all("50.0 % of the answers ran into rollout.max_new_tokens, against 20.0 %" in e["text"] for e in events)
