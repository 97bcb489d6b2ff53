"""How much memory the process has taken."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most resident memory this process has held so far; memory of an accelerator is not in it."""
    status = Path("/proc/self/status")
    # ru_maxrss of Linux outlives exec, so that a child reports the peak of its parent.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
