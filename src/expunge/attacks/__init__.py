"""Attacks: try to bring the knowledge back, at a stated budget."""

from expunge.attacks.catalogue import ATTACKS, make_attack

__all__ = ["ATTACKS", "make_attack"]
