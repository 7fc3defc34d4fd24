"""HRA: inputs are reflected at trained planes, one after another."""
