"""AdaLoRA: LoRA whose layers share a budget of ranks."""
