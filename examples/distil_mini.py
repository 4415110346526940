"""Distils the mini pair from Python, on a CPU, in minutes: the same as ``npd run configs/mini.yaml``.

python examples/distil_mini.py                                          # the whole run, or what is left of it
python examples/distil_mini.py run.dir=runs/short data.limit=64 train.epochs=2
"""

import sys

from npd_ascend import NpdError, load_config, run

try:
    done = run(load_config("configs/mini.yaml", sys.argv[1:]))
except NpdError as e:
    sys.exit(f"error: {e}")

for name, result in done.evaluations().items():
    low, high = result["interval"]
    print(f"{name:8} {result['accuracy']:6.1%} right (95 % interval {low:.1%} to {high:.1%})")
for generation in done.generations:
    keep = generation.table("selection", ["keep"])["keep"].to_pylist()
    print(f"generation {generation.index}: trained on {sum(keep)} of {len(keep)} answers")
print(f"student: {done.export}")
