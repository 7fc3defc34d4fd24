"""MiSS: blocks of a layer's inputs share one trained matrix."""
