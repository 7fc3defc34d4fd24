"""RandLoRA: trained weights on random low-rank bases that all layers share, together of full rank."""
