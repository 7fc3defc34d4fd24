"""Fused operations, each beside its plain reference."""
