"""The methods: one folder each, registered in `registry.py`."""
