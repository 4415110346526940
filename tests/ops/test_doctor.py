"""The checks against machines that are made of files, variables and recorded answers."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from npd_ascend.data import compat
from npd_ascend.environments import Environments
from npd_ascend.ops.doctor import Finding, examine, render
from npd_ascend.ops.doctor.checks import software
from npd_ascend.ops.doctor.machine import Machine
from npd_ascend.ops.doctor.pairs import MINDSPORE, ROLLOUT
from npd_ascend.ops.doctor.registry import Patient, checks

GOOD = {
    "HCCL_CONNECT_TIMEOUT": "1800",
    "LD_LIBRARY_PATH": "/usr/local/Ascend/nnal/atb/latest/lib",
    "HCCL_HOST_SOCKET_PORT_RANGE": "auto",
}


class Node(Machine):
    """An Ascend node as its files and commands would show it."""

    absent: str | None = "\n"

    def __init__(self, root, smi, npus=8, env=None, packages=None):
        super().__init__({**GOOD, **(env or {})}, root)
        self.smi, self.packages = smi, packages or {}
        for name in [f"davinci{i}" for i in range(npus)] + ["davinci_manager", "devmm_svm", "hisi_hdc"] * bool(npus):
            self.file(f"dev/{name}")

    def file(self, path, text=""):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def run(self, *command):
        if command[0] == "npu-smi":
            return self.smi
        if "hccl" in command[2]:
            return self.absent
        return json.dumps(self.packages.get(command[0])) if "metadata" in command[2] else "False"


@pytest.fixture
def node(tmp_path, npu_smi):
    def make(smi="a2_idle", **kw):
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        return Node(root, npu_smi(smi) if smi else None, **kw)

    return make


def run(name, machine, config=None, environments=None):
    return checks()[name](Patient(machine, environments, config))


def levels(findings):
    return [f.level for f in findings]


def test_idle_node(node):
    m = node()
    assert run("devices_present", m)[0].what == "NPUs visible: 8"
    assert run("devices_healthy", m) == [Finding("ok", "8 x 910B2, healthy, 61 GB free each")]
    assert levels(run("variables", m)) == ["ok"] and levels(run("ports", m)) == ["ok"]


def test_python_packages_of_cann(node):
    m, both = node(), Environments(Path("ms"), Path("ro"))
    assert run("cann_packages", m, environments=both) == []
    m.absent = "te and hccl\n"
    (f,) = run("cann_packages", m, environments=both)
    assert f.level == "error" and "te and hccl" in f.what and "set_env.sh" in f.remedy
    m.absent = None  # an interpreter that does not run is told elsewhere
    assert run("cann_packages", m, environments=both) == []


def test_what_is_asked_of_the_interpreter():
    said = subprocess.check_output([sys.executable, "-c", software._ABSENT.replace("'te'", "'json'")], text=True)
    assert said == "hccl\n"


def test_leftover_process(node):
    (f,) = run("devices_healthy", node("a2_busy"))
    assert f.level == "error" and "NPU 2 40 of 64 GB" in f.what and "1333928" in f.what and f.remedy


def test_memory_held_by_a_process_of_another_container(node, npu_smi):
    m = node("a2_busy")
    m.smi = m.smi.split("| NPU     Chip")[0]
    assert "no process that this container can see" in run("devices_healthy", m)[0].what


def test_sick_device(node):
    assert "NPU 1 (Alarm)" in run("devices_healthy", node("a2_alarm", npus=2))[0].what


def test_a3(node):
    found = run("devices_healthy", node("a3", npus=16))
    assert "NPU 12" in found[0].what and "NPU 13" in found[0].what


def test_no_npu_smi(node):
    (f,) = run("devices_healthy", node(None))
    assert f.level == "warning" and "mount" in f.remedy


def test_missing_device_files(node, config):
    m = node()
    (m.root / "dev/devmm_svm").unlink()
    assert "devmm_svm" in run("devices_present", m)[0].what
    none = node(npus=0)
    for f in (none.root / "dev").iterdir():
        f.unlink()
    assert run("devices_present", none)[0].level == "ok"
    assert run("devices_present", none, config(device={"target": "ascend"}))[0].level == "error"


@pytest.mark.parametrize("choice,what", [("0,9", "there is no NPU 9"), ("a", "expected numbers"), ("0,1", "2 of 8")])
def test_visible_devices(node, choice, what):
    (f,) = run("devices_present", node(env={"ASCEND_RT_VISIBLE_DEVICES": choice}))
    assert what in f.what


def test_widths_against_devices(node, config):
    many = config(rollout={"workers": 16}, train={"data_parallel": 16, "global_batch": 16})
    assert levels(run("enough_devices", node(), many)) == ["error"]
    assert levels(run("enough_devices", node(env={"NODES": "2"}), many)) == ["ok"]
    apart = config(
        rollout={"workers": 6},
        train={"data_parallel": 2, "global_batch": 8},
        device={"placement": {"rollout": 6, "train": 2}},
    )
    assert levels(run("enough_devices", node(), apart)) == ["ok"]
    assert levels(run("enough_devices", node(env={"ASCEND_RT_VISIBLE_DEVICES": "0,1,2"}), apart)) == ["error"]
    few = config(train={"data_parallel": 8, "global_batch": 8})
    assert levels(run("enough_devices", node(), few)) == ["warning"]
    right = config(rollout={"workers": 8}, train={"data_parallel": 8, "global_batch": 8})
    assert levels(run("enough_devices", node(), right)) == ["ok"]


def test_hccl_port_taken(node):
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        base = s.getsockname()[1] - 3
        m = node(env={"HCCL_IF_BASE_PORT": str(base), "HCCL_HOST_SOCKET_PORT_RANGE": ""})
        (f,) = run("ports", m)
        assert f.level == "error" and str(base + 3) in f.what and "auto" in f.remedy
        m = node(env={"NODES": "2", "MASTER_PORT": str(base + 3)})
        assert "msrun" in run("ports", m)[0].what
    assert (
        "expected a port"
        in run("ports", node(env={"HCCL_IF_BASE_PORT": "99999", "HCCL_HOST_SOCKET_PORT_RANGE": ""}))[0].what
    )


def test_several_nodes(node, config):
    assert run("several_nodes", node()) == []
    bad = run("several_nodes", node(env={"NODES": "2"}), config())
    assert levels(bad) == ["error", "error", "warning"]
    good = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "HCCL_SOCKET_IFNAME": "eth0"}
    assert levels(run("several_nodes", node(env=good), config())) == ["ok"]
    broken = node(env={"NODES": "two"})
    assert run("several_nodes", broken)[0].level == "error"
    run("enough_devices", broken, config())


@pytest.mark.parametrize("env,word", [
    ({"VLLM_PLUGINS": "npd_pangu"}, "ascend"), ({"VLLM_PLUGINS": "ascend"}, "npd_pangu"),
    ({"VLLM_ASCEND_ENABLE_NZ": "1"}, "NZ layout"), ({"HCCL_CONNECT_TIMEOUT": "120"}, "EI0006"),
    ({"HCCL_CONNECT_TIMEOUT": "x"}, "not a number"), ({"RANK_TABLE_FILE": "/x"}, "another launcher"),
    ({"MS_ROLE": "MS_WORKER"}, "another launcher"), ({"LD_LIBRARY_PATH": "/usr/lib"}, "libatb.so"),
    ({"ASCEND_LAUNCH_BLOCKING": "1"}, "slower")])  # fmt: skip
def test_variables(node, env, word):
    (f,) = run("variables", node(env=env))
    assert word in f.what and f.remedy and f.level in ("warning", "error")


def test_versions_of_cann_and_driver(node):
    m = node()
    assert run("cann", m)[0].level == "error"
    m.file(
        "usr/local/Ascend/cann-9.0.0/aarch64-linux/ascend_toolkit_install.info",
        "package_name=Ascend-cann-toolkit\nversion=9.0.0\narch=aarch64\n",
    )
    assert run("cann", m) == [Finding("ok", "CANN 9.0.0")]
    assert run("driver", m) == [Finding("ok", "driver 26.0.rc1")]
    m.file("usr/local/Ascend/driver/version.info", "Version=25.2.0\nascendhal_version=7.35.23\n")
    assert run("driver", m)[0].level == "warning"
    old = node()
    (old.root / "usr/local/Ascend/cann-9.0.0/aarch64-linux/ascend_toolkit_install.info").write_text("version=8.3.RC2\n")
    assert "8.3.RC2" in run("cann", old)[0].what


def test_either_release_of_vllm_ascend_will_do(node, tmp_path):
    pythons = Environments(tmp_path / "m", tmp_path / "r")
    for stack in ROLLOUT["ascend"]:
        m = node(packages={str(pythons.rollout): stack.packages})
        assert set(levels(run("rollout_environment", m, environments=pythons))) == {"ok"}
    m = node(packages={str(pythons.rollout): {**ROLLOUT["ascend"][0].packages, "torch": "2.9.0"}})
    bad = [f for f in run("rollout_environment", m, environments=pythons) if f.level == "error"]
    assert [f.what for f in bad] == ["rollout environment: torch 2.9.0, tested with 2.10.0*"]
    m = node(packages={str(pythons.mindspore): {**MINDSPORE["ascend"].packages, "numpy": "2.1.0"}})
    assert levels(run("mindspore_environment", m, environments=pythons)) == ["ok", "ok", "error"]


def test_memory_of_the_configured_models(node, paper):
    tight = run("device_memory", node(), paper())
    assert "train does not fit" in tight[0].what and tight[0].level == "error"
    fits = paper(pack={"row_length": 4096}, annotate={"row_length": 4096}, train={"data_parallel": 8})
    assert levels(run("device_memory", node(), fits)) == ["ok"]


def test_pair_as_released_is_taken_and_what_follows_from_its_differences_is_told(node, config, qwen_pair, tmp_path):
    teacher, student = qwen_pair(tmp_path)

    def told(**data):
        return run(
            "models",
            node(npus=0),
            config(models={"teacher": str(teacher), "student": str(student)}, data={"prompts": [], **data}),
        )

    findings = told()
    assert levels(findings) == ["ok", "ok", "warning"] and all(f.remedy for f in findings if f.level == "warning")
    assert "the teacher's" in findings[1].what and findings[2].what.startswith("stop tokens differ")
    assert levels(told(chat_template="student")) == ["ok", "warning"]
    missing = told(chat_template=str(tmp_path / "gone.jinja"))
    assert levels(missing) == ["error"] and "data.chat_template" in missing[0].what
    for folder in (teacher, student):  # neither has an end, nor a template that has one
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            old = json.loads((folder / name).read_text())
            new = {k: None if "eos" in k else v for k, v in old.items() if k != "chat_template"}
            (folder / name).write_text(json.dumps(new))
    assert levels(told()) == ["error"] and "no answer could ever end" in told()[0].what


def test_tokenizers_are_loaded_once_for_all_checks(config, qwen_pair, tmp_path, monkeypatch):
    teacher, student = qwen_pair(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"How many {i}?", "answer": "4"}) + "\n" for i in range(3)))
    loaded, real = [], compat.load_tokenizer
    monkeypatch.setattr(compat, "load_tokenizer", lambda folder, *a: loaded.append(folder.name) or real(folder, *a))
    patient = Patient(
        Machine(),
        config=config(
            models={"teacher": str(teacher), "student": str(student)},
            data={"prompts": [str(prompts)], "answer_field": "answer"},
            evaluate={"prompts": [str(prompts)], "checker": "exact"},
            rollout={"max_new_tokens": 8},
        ),
    )
    found = [f for name in ("models", "prompts") for f in checks()[name](patient)]
    assert levels(found) == ["ok", "ok", "warning", "ok"], found[-1]
    assert sorted(loaded) == ["student", "teacher"]


def test_disk(node, config, monkeypatch):
    assert run("disk", node(), config())[0].level == "ok"
    huge = config(train={"keep_checkpoints": 10**9})
    assert run("disk", node(), huge)[0].level == "error"


def test_all_checks_run_on_this_machine_and_know_no_configuration():
    findings = examine()
    assert findings and all(f.remedy for f in findings if f.level != "ok")
    assert any("CPU cores" in f.what for f in findings)


def test_broken_configuration_is_one_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: 3\n")
    assert any(f.level == "error" and "c.yaml" in f.what for f in examine(path))


def test_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(tmp_path / "nope"))
    assert any(f.level == "error" and "NPD_MINDSPORE_PYTHON" in f.what for f in examine())


def test_an_environment_without_packages(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"mindspore": "2.7.0", "mindformers": null, "numpy": "1.26"}\'\n')
    fake.chmod(0o755)
    found = run("mindspore_environment", Machine({}, tmp_path), environments=Environments(fake, tmp_path))
    assert [f.what for f in found if f.level == "error"] == [
        "mindspore environment: mindspore 2.7.0, tested with 2.9.0*",
        "mindspore environment: mindformers is missing",
    ]
    found = run("mindspore_environment", Machine({}, tmp_path), environments=Environments(tmp_path, tmp_path))
    assert "does not run" in found[0].what


def test_torch_npu_without_an_npu(tmp_path):
    class Box(Machine):
        def run(self, *command):
            return "True\n"

    pythons = Environments(sys.executable, sys.executable)
    (f,) = run("torch_without_an_npu", Box({}, tmp_path), environments=pythons)
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in f.remedy
    told = Box({"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, tmp_path)
    assert run("torch_without_an_npu", told, environments=pythons) == []


def test_render():
    text = render([Finding("ok", "a"), Finding("error", "b", "do c")])
    assert text == "ok       a\nERROR    b\n         -> do c"
