"""How much memory the process has taken, and what the C library does with what is freed."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Of `mallopt`, as in malloc.h."""


def peak_bytes() -> int:
    """The most resident memory this process has held so far; memory of an accelerator is not in it."""
    status = Path("/proc/self/status")
    # ru_maxrss of Linux outlives exec, so that a child reports the peak of its parent.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is asked next; whether it will.

    Every step makes and frees gradients and activations. Blocks above a few megabytes otherwise go back to the system,
    which zeroes and maps each of their pages anew in the next step. glibc only, and not where the environment sets
    its allocator already. It is of the whole process: a program calls it once, a library does not.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if told or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_THRESHOLD, 2**31 - 1))
