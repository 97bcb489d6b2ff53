"""What is freed is kept for the next step, in a process of its own: it is a setting of the whole process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

BLOCKS = """
import resource
from expunge.models.memory import keep_freed_memory
{before}
for _ in range(20):
    block = b"x" * (64 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(before: str, environment: dict[str, str] | None = None) -> int:
    """Pages that were mapped anew by twenty blocks of 64 MiB (16,384 pages each), one after the other."""
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name.upper()}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS.format(before=before)],
        env={**plain, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_pages_are_used_again() -> None:
    usual, kept = faults(""), faults("assert keep_freed_memory()")
    # A page may be larger than 4 KiB, so the two are compared, not counted.
    assert kept < usual / 4


@pytest.mark.parametrize(
    "own", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_an_allocator_that_the_environment_sets_is_left_alone(own: dict[str, str]) -> None:
    faults("assert not keep_freed_memory()", own)


PILED = """
from expunge.models.memory import give_back_freed_memory, keep_freed_memory, resident_bytes
assert keep_freed_memory()
blocks = [b"x" * (16 << 20) for _ in range(16)]
last, blocks = blocks[-1], None  # what lies above them keeps the C library from giving them back by itself
held = resident_bytes()
assert held > 256 << 20
assert not give_back_freed_memory(limit=held + (1 << 20)) and resident_bytes() > held - (8 << 20)
assert give_back_freed_memory(limit=held // 2)
assert resident_bytes() < held - (200 << 20), (held, resident_bytes())
assert not give_back_freed_memory(), "far below half of any machine that can run this"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_what_is_kept_is_given_back_where_memory_is_tight() -> None:
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name.upper()}
    subprocess.run([sys.executable, "-c", PILED], env=plain, check=True)
