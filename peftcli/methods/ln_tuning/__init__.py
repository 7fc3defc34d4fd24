"""LN tuning: norms are trained whole."""
