"""PEFT's Python surface: adapted models, and their two files."""
