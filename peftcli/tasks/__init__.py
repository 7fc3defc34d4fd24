"""Tasks: one file a task type."""
