"""FourierFT: the weights' update is trained as a few entries of its spectrum."""
