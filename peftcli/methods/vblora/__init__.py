"""VB-LoRA: LoRA whose factors are made of vectors from a bank that all layers share."""
