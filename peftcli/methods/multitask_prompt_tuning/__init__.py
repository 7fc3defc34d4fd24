"""Multitask prompt tuning: one prompt for many tasks, and a small change of it for each."""
