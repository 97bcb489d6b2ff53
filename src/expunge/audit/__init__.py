"""Measures of a model before and after unlearning and attacks, and the verdict that they lead to."""
