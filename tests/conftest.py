"""What tests of several packages share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from npd_ascend.environments import Environments
from npd_ascend.ops.nodes import free_port

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from zoo import tokenizers_of  # noqa: E402

PAGE = 4096

# The same examples everywhere, and none that fails because the machine is busy.
settings.register_profile("npd", deadline=None, derandomize=True, database=None)
settings.load_profile("npd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that two processes that share the files end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves slow tests out after the second since 1970 that ``NPD_SLOW_TESTS_UNTIL`` says."""
    until = float(os.environ.get("NPD_SLOW_TESTS_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip("slow, and the time for slow tests (NPD_SLOW_TESTS_UNTIL) is over")


class Disk:
    """A small file system of its own."""

    def __init__(self, root: Path):
        self.root = root
        self._ballast = root / "ballast"

    def leave(self, pages: int) -> None:
        """Fills it up but for so many pages."""
        self.free()
        with open(self._ballast, "wb", buffering=0) as f:
            room = os.statvfs(self.root).f_bavail - pages
            os.posix_fallocate(f.fileno(), 0, max(room, 1) * PAGE)
        assert os.statvfs(self.root).f_bavail == pages

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def read_only(self, yes: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mounted = (
        shutil.which("mount")
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], capture_output=True
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


_STARVED = """if True:
    import os, resource, sys
    import mindformers
    import mindspore as ms
    from npd_ascend.workers import process

    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    ms.nn.Dense(64, 64)(ms.Tensor([[1.0] * 64])).asnumpy()
    limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os._exit(process.main(sys.argv[1:2]))
"""


@pytest.fixture(scope="session")
def starved():
    """(job file, bytes) -> its process, which had so much memory beyond what MindSpore and its threads take.

    The limit is set when the engine has started: what that takes, and whether its threads find room, differs from
    machine to machine.
    """

    def run(job: Path, room: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", _STARVED, str(job), str(room)], capture_output=True, text=True)

    return run


@pytest.fixture
def under_msrun(tmp_path):
    """(processes, script, arguments) -> runs the script on so many processes, which must end well in time."""

    def start(processes: int, logs: Path, args: tuple[Path, ...], seconds: float) -> subprocess.CompletedProcess[str]:
        bin_dir = Path(sys.executable).parent
        return subprocess.run(
            [
                bin_dir / "msrun",
                f"--worker_num={processes}",
                f"--local_worker_num={processes}",
                "--join=True",
                f"--master_port={free_port()}",
                f"--log_dir={logs}",
                str(tmp_path / "rank.py"),
                *map(str, args),
            ],
            env={
                **os.environ,
                "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
                "PYTHONFAULTHANDLER": "1",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def run(processes: int, script: str, *args: Path, seconds: float = 550) -> None:
        (tmp_path / "rank.py").write_text(script)
        logs = tmp_path / "logs"
        got = start(processes, logs, args, seconds)
        if "Error code: -11" in got.stdout + got.stderr:
            # MindSpore's own start of a process group dies of a fault now and then, about once in a hundred on a busy
            # machine. The package starts such a worker again (workers.failures), and so does this.
            got = start(processes, logs := tmp_path / "logs-again", args, seconds)
        said = "".join(p.read_text(errors="replace")[-2000:] for p in sorted(logs.glob("*.log")))
        assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-3000:] + said

    return run


@pytest.fixture(scope="session")
def loud_padding():
    """(checkpoint of one F32 file, vocabulary): the head's rows from there on get logits that no model could overlook,
    so what does not mask them is wrong by nats."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    def make(folder: Path, vocabulary: int) -> Path:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
        padding = head[vocabulary:]
        padding[:] = np.random.default_rng(0).standard_normal(padding.shape).astype(np.float32) * 4 * np.abs(head).max()
        save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="session")
def engines():
    """The interpreters of both engines; skips where one environment stands for both."""
    found = Environments.find()
    if found.mindspore == found.rollout:
        pytest.skip("needs both environments (scripts/setup_env.sh)")
    return found


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """``make(folder, eos, default, added)``: files as in Qwen2.5's folders, with few tokens."""
    return tokenizers_of.qwen


@pytest.fixture(scope="session")
def qwen_pair(qwen_tokenizer):
    """``make(folder)`` -> (Instruct teacher, base student) as Qwen2.5 releases them: one tokenizer, two ends, two
    widths.

    Both answer every chat with the same few tokens, then ``<|im_end|>``, ``<|endoftext|>`` and the same again: layers
    add nothing, and the head leads from each token of that circle to the next.
    """

    def make(folder: Path) -> tuple[Path, Path]:
        teacher, student = folder / "teacher", folder / "student"
        qwen_tokenizer(teacher, default="You are Qwen.")
        qwen_tokenizer(student, eos="<|endoftext|>", default="You are a helpful assistant.")
        vocab = json.loads((teacher / "tokenizer.json").read_text())
        ids = vocab["model"]["vocab"] | {t["content"]: t["id"] for t in vocab["added_tokens"]}
        end, text = ids["<|im_end|>"], ids["<|endoftext|>"]
        circle = [ids["Ċ"], ids["4"], ids["8"], ids["+"], end, text, ids["4"]]
        for out, seed, layers, width, config, stops in (
            (teacher, 1, 3, 320, {"bos_token_id": text, "eos_token_id": end}, [end, text]),
            (student, 2, 2, 304, {"bos_token_id": text, "eos_token_id": text}, text),
        ):
            _write_qwen(out, seed, layers, width, circle, config)
            (out / "generation_config.json").write_text(
                json.dumps({"bos_token_id": text, "pad_token_id": text, "do_sample": False, "eos_token_id": stops})
            )
        return teacher, student

    return make


def _write_qwen(out: Path, seed: int, layers: int, width: int, circle: list[int], config: dict[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    rng, hidden, ffn, kv = np.random.default_rng(seed), 64, 64, 32

    def normal(*shape: int, scale: float = 0.1):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    embedding, head = normal(width, hidden, scale=1.0), normal(width, hidden, scale=0.01)
    head[296:] = 0  # padding
    for token, following in zip(circle, circle[1:], strict=False):
        head[following] += embedding[token] / 4
    weights = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for i in range(layers):
        at = f"model.layers.{i}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            weights |= {
                f"{at}self_attn.{name}_proj.weight": normal(rows, hidden),
                f"{at}self_attn.{name}_proj.bias": normal(rows),
            }
        weights |= {
            f"{at}self_attn.o_proj.weight": np.zeros((hidden, hidden), np.float32),
            f"{at}mlp.gate_proj.weight": normal(ffn, hidden),
            f"{at}mlp.up_proj.weight": normal(ffn, hidden),
            f"{at}mlp.down_proj.weight": np.zeros((hidden, ffn), np.float32),
            f"{at}input_layernorm.weight": np.ones(hidden, np.float32),
            f"{at}post_attention_layernorm.weight": np.ones(hidden, np.float32),
        }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "attention_dropout": 0.0,
                "hidden_act": "silu",
                "hidden_size": hidden,
                "initializer_range": 0.02,
                "intermediate_size": ffn,
                "max_position_embeddings": 512,
                "max_window_layers": layers,
                "num_attention_heads": 2,
                "num_hidden_layers": layers,
                "num_key_value_heads": 1,
                "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0,
                "sliding_window": 512,
                "tie_word_embeddings": False,
                "torch_dtype": "float32",
                "use_cache": True,
                "use_sliding_window": False,
                "vocab_size": width,
                **config,
            }
        )
    )
