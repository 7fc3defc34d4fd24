"""LoKr: the weights' update is the Kronecker product of two matrices."""
