"""IA³: learned scales on activations."""
