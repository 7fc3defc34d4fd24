"""Prefix tuning: trained keys and values before those of each attention layer."""
