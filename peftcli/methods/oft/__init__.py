"""OFT: blocks of a layer's inputs are rotated."""
