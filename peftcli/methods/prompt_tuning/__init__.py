"""Prompt tuning: trained vectors before the input."""
