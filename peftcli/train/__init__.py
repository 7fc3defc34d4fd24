"""Training: one loop for every method and task."""
