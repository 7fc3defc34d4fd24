"""The recipe: reading it, checking it, and its JSON Schema. Imports neither torch nor transformers."""
