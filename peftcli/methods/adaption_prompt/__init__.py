"""LLaMA-adapter: trained prompts beside attention, let in through a gate that starts at zero."""
