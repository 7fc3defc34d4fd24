"""Data formats: one function each, from a row to an example."""
