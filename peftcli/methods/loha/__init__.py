"""LoHa: the weights' update is the elementwise product of two low-rank matrices."""
