"""LoRA, with its variants and initialisations."""
