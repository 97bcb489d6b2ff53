"""Take knowledge out of a language model, attack the result, and say whether it is erased or only hidden.

`import expunge` is light: torch and transformers are imported when one of the names below is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "unlearn": "expunge.api",
    "attack": "expunge.api",
    "load_model": "expunge.models.load",
    "read_examples": "expunge.data.sources",
    "Example": "expunge.data.example",
    "Request": "expunge.request",
    "Record": "expunge.report.record",
    "ExpungeError": "expunge.errors",
}

__all__ = ["Example", "ExpungeError", "Record", "Request", "attack", "load_model", "read_examples", "unlearn"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
