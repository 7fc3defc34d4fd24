"""What an adapter must be for a program to load it, one file a program, and the commands that serve it there."""
