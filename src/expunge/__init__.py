"""Take knowledge out of a language model, attack the result, and say whether it is erased or only hidden."""

__version__ = "0.1.0"
