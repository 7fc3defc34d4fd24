"""P-tuning: a prompt that a small network makes."""
