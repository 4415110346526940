"""Exact top-10 of rows of logits, and the whole annotation of a row, against what numpy, MindSpore and torch offer.

    python benchmarks/topk.py [--rounds 7]

Run it with the interpreter of the MindSpore environment; torch answers from the rollout environment. Milliseconds of
the best round; rounds alternate. ``summarise`` is what annotation does: top-k with logZ, entropy and the log-prob of
the sampled token; ``read`` is one pass over the array (its maximum), which bounds every exact method from below.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
from rounds import Side, interpreter, serve

K = 10
SHAPES = [(1024, 2048), (256, 32_000), (128, 153_376)]


def logits(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(3)


def torch_side() -> None:
    import torch

    arrays = [torch.from_numpy(logits(s)) for s in SHAPES]

    def run(i: int) -> Callable[[], float]:
        return lambda: milliseconds(lambda: torch.topk(arrays[i], K, -1))

    def whole(i: int) -> Callable[[], float]:
        def work() -> None:
            log = torch.log_softmax(arrays[i], -1)
            torch.topk(log, K, -1)
            -(log.exp() * log).sum(-1)

        return lambda: milliseconds(work)

    serve({f"{name}{i}": make(i) for i in range(len(SHAPES)) for name, make in (("top", run), ("all", whole))})


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        return torch_side()
    import mindspore as ms
    from mindspore import ops

    from npd_ascend.annotate.distribution import summarise, top_k

    torch = Side(interpreter("rollout"), __file__, "--torch")
    engine = ops.TopK(sorted=True)
    names = [
        "read",
        "top_k (ours)",
        "np.argpartition",
        "ops.TopK",
        "torch.topk",
        "summarise (ours)",
        "torch: log_softmax, topk, entropy",
    ]
    print(f"{platform.machine()}, 2 cores, k = {K}, float32, ms, best of {args.rounds}, {time.strftime('%Y-%m-%d')}")
    print("| rows x V | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for i, shape in enumerate(SHAPES):
        array = logits(shape)
        tensor, targets = ms.Tensor(array), np.zeros(shape[0], np.int64)
        ids, values = top_k(array, K)
        want = np.sort(np.partition(array, shape[1] - K, 1)[:, -K:], 1)[:, ::-1]
        assert np.array_equal(values, want) and np.array_equal(np.take_along_axis(array, ids, 1), want)
        ways: list[Callable[[], float]] = [
            lambda a=array: milliseconds(lambda: a.max(1)),
            lambda a=array: milliseconds(lambda: top_k(a, K)),
            lambda a=array: milliseconds(lambda: np.argpartition(a, a.shape[1] - K, 1)),
            lambda t=tensor: milliseconds(lambda: engine(t, K)[0].asnumpy()),
            lambda i=i: torch.ask(f"top{i}"),
            lambda a=array, t=targets: milliseconds(lambda: summarise(a, t, K)),
            lambda i=i: torch.ask(f"all{i}"),
        ]
        best = np.full(len(ways), np.inf)
        for _ in range(args.rounds + 1):
            best = np.minimum(best, [way() for way in ways])
        print(f"| {shape[0]:,} x {shape[1]:,} | " + " | ".join(f"{b:.1f}" for b in best) + " |", flush=True)
    torch.close()


if __name__ == "__main__":
    main()
