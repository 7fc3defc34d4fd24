"""BOFT: inputs are rotated by a product of sparse rotations, as a fast Fourier transform mixes them."""
