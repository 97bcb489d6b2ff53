"""How much memory the process has taken, and what the C library does with what is freed."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from functools import cache
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


def give_back_freed_memory(limit: int | None = None) -> bool:
    """Give what is freed, and kept, back to the system if the process holds more than `limit` bytes; whether it did.

    Where steps differ in size, as with texts of many lengths, what one frees does not fit the next, and what is kept
    piles up. So whoever makes steps calls this between them. Without a limit it is half of the machine's memory, or of
    what the process's control group may have.
    """
    if platform.libc_ver()[0] != "glibc" or resident_bytes() <= (limit if limit is not None else _allowed() // 2):
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def resident_bytes() -> int:
    """The memory that this process holds now, on Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def _allowed() -> int:
    """What the machine has, or the control group allows if that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup/memory.max")
    told = group.read_text(encoding="ascii").strip() if group.is_file() else ""
    return min(machine, int(told)) if told.isdigit() else machine
