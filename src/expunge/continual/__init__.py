"""Requests one after another: a ledger of what was asked and done, and the models that follow from it."""
