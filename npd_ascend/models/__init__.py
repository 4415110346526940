"""The network class, and weights between Hugging Face folders and it."""

import os
import tempfile

# Read by MindSpore and MindFormers while they are imported: errors only, and no log folder in the working directory.
os.environ.setdefault("GLOG_v", "3")
_LOGS = os.path.join(tempfile.gettempdir(), f"npd-mindformers-{os.getuid()}")
os.environ.setdefault("LOCAL_DEFAULT_PATH", _LOGS)
os.environ.setdefault("LOG_MF_PATH", os.path.join(_LOGS, "log"))
