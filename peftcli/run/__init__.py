"""One file a command's work; the only floor that knows all parts."""
