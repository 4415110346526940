"""A process that msrun starts: a rank of a group of workers, or their scheduler.

What it prints goes to the group's own log from the first line on. msrun would copy it there from files of its own, by a
``tail -f`` for each rank, which outlives an msrun that is killed.
"""

import os
import sys
from pathlib import Path

LOG = "NPD_WORKER_LOG"
SCRIPT = __file__

if __name__ == "__main__":
    out = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    folder = str(Path(__file__).parent)
    sys.path[:] = [p for p in sys.path if p != folder]  # msrun starts this file by its path
    from npd_ascend.workers.process import main

    sys.exit(main())  # msrun's scheduler has to learn that a rank leaves
