"""Data: from files and data sets to encoded rows."""
