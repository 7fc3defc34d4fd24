"""Base models: found, converted where they must be, and loaded."""
