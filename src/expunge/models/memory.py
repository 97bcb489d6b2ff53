"""How much memory the process has taken."""

from __future__ import annotations

import resource
import sys


def peak_bytes() -> int:
    """The most resident memory this process has held so far; memory of an accelerator is not in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
