"""Context-aware prompt tuning: examples as a prompt, moved a little."""
