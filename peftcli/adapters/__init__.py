"""What every method is built on: configs, the layers that names mean, attaching, switching, merging."""
