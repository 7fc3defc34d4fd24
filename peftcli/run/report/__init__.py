"""The work of `peftcli report`: runs' folders in, one HTML page out."""
