"""The recipe grpo: what happens in which order, what it refuses, and that configurations for it hold together."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from npd_ascend.config import load_config
from npd_ascend.config.load import parse_config
from npd_ascend.errors import UserError
from npd_ascend.objectives.registry import summands
from npd_ascend.ops.inputs import check_names
from npd_ascend.recipes import grpo, npd
from npd_ascend.tasks import sandbox
from npd_ascend.tasks.judge import parts_of

ROOT = Path(__file__).resolve().parents[2]


class Walk:
    """Notes what a recipe asks for; two refreshes."""

    def __init__(self, generations=3):
        self.steps, self.generations = [], generations

    def __call__(self, stage, generation=-1, *, quantities=(), evaluation=""):
        self.steps.append(f"{generation} {stage} {evaluation or ','.join(sorted(quantities))}".strip())

    def refresh(self, generation):
        return generation + 1 < self.generations

    def export(self, generation):
        self.steps.append(f"export {generation}")


def config(**sections):
    tree = {
        "run": {"dir": "r", "recipe": "grpo"},
        "models": {"teacher": "t", "student": "s"},
        "data": {"prompts": ["p"], "answer_field": "answer", "slice": 4},
        "rollout": {"greedy": False, "samples": 8},
        "reward": {"parts": {"number": 1}},
        "select": {"filter": "none"},
        "train": {"loss": {"terms": {"ppo_clip": 1}}},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree, "test")


def test_the_order_of_a_generation():
    walk = Walk()
    grpo.recipe(config(evaluate={"prompts": ["e"], "every": 2}), walk)
    assert walk.steps == [
        "-1 prepare", "-1 prepare_eval",
        "0 draw", "0 rollout", "0 evaluate_rollout start", "0 evaluate start", "0 reward", "0 select", "0 pack",
        "0 train",
        "1 draw", "1 rollout", "1 reward", "1 select", "1 pack", "1 train",
        "2 draw", "2 rollout", "2 evaluate_rollout refresh 2", "2 evaluate refresh 2", "2 reward", "2 select", "2 pack",
        "2 train", "export 2", "3 evaluate_rollout end", "3 evaluate end",
    ]  # fmt: skip


def test_all_prompts_and_a_teacher_in_the_loss():
    walk = Walk(1)
    grpo.recipe(config(data={"slice": None}, train={"loss": {"terms": {"ppo_clip": 1, "forward_kl": 0.1}}}), walk)
    assert walk.steps == ["-1 prepare", "0 rollout", "0 reward", "0 annotate_teacher scores_teacher,topk", "0 select",
                          "0 pack", "0 train", "export 0"]  # fmt: skip


def test_npd_takes_slices_too():
    walk = Walk(2)
    npd.recipe(config(), walk)
    assert [s for s in walk.steps if "draw" in s] == ["0 draw", "1 draw"] and "0 reward" not in walk.steps


def test_a_recipe_is_short():
    assert len(inspect.getsource(grpo).splitlines()) <= 60


def test_what_holds_together():
    check_names(config())


@pytest.mark.parametrize(
    "sections, why",
    [
        ({"reward": {"parts": {}}}, "reads advantages, and there are no rewards .*set run.recipe: grpo"),
        ({"rollout": {"samples": 1}}, "there is 1: set rollout.greedy: false and rollout.samples: 2 or more"),
        ({"data": {"answer_field": None}}, "reward number compares .* neither data.answer_field nor data.task"),
        ({"rollout": {"top_p": 0.9}}, "ppo_clip weighs each token .*rollout.top_p: 0.9 .*set rollout.top_p: 1.0"),
        ({"rollout": {"top_k": 50}}, "rollout.top_k: 50 .*set rollout.top_k: 0"),
        ({"rollout": {"temperature": 0.7}}, "rollout.temperature: 0.7 .*set rollout.temperature: 1.0"),
        ({"rollout": {"greedy": True}}, "rollout.greedy: True .*set rollout.greedy: false"),
        ({"reward": {"parts": {"task": 1}}}, "reward.parts names task, but data.task is not set"),
        ({"data": {"task": "gsm9k"}}, "there is no task 'gsm9k'; did you mean gsm8k"),
        ({"reward": {"parts": {"maths": 1}}}, "there is no reward 'maths'; did you mean math"),
        ({"reward": {"parts": {"length": 1}}}, "reward length needs the option 'limit'"),
        ({"train": {"loss": {"terms": {"ppo_clip:x": 1}}}}, "ppo_clip takes low and high, numbers from 0 on"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_started(sections, why):
    with pytest.raises(UserError, match=why) as e:
        check_names(config(**sections))
    assert "\n" not in str(e.value)


def test_a_missing_sandbox_is_said_before_anything_is_started(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.check.cache_clear()
    with pytest.raises(UserError, match="there is no bwrap here"):
        check_names(config(reward={"parts": {"code": 1}}))
    sandbox.check.cache_clear()


def test_no_rewards():
    with pytest.raises(UserError, match="run.recipe grpo learns from rewards"):
        grpo.recipe(config(reward={"parts": {}}), Walk())


def test_parts_may_be_numbers_or_sections():
    c = config(data={"task": "gsm8k"}, reward={"parts": {"task": 2, "length": {"options": {"limit": 9, "buffer": 3}}}})
    found = parts_of(c)
    assert {k: (p.weight, p.options) for k, p in found.items()} == {
        "number": (2.0, {}),
        "length": (1.0, {"limit": 9, "buffer": 3}),
    }


@pytest.mark.parametrize("name", ["mini_grpo", "openpangu_1b_grpo"])
def test_shipped_configurations(name):
    c = load_config(ROOT / "configs" / f"{name}.yaml")
    assert [s.term.name for s in summands(c.train.loss) if s.scale] == ["ppo_clip"] and c.train.lr == c.train.min_lr
    assert c.sync.refreshes + 1 == c.train.epochs and c.rollout.paths == 8 and c.data.slice
    walk = Walk(c.sync.refreshes + 1)
    grpo.recipe(c, walk)
    assert sum("train" in s for s in walk.steps) == c.train.epochs
