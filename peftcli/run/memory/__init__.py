"""How much memory a recipe takes, before it takes it."""
