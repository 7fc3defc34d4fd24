"""Trainable tokens: some rows of the embeddings."""
