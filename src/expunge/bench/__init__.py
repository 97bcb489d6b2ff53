"""The same run over methods and seeds, and the table that comes of it."""
