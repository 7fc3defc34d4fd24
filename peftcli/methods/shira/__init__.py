"""SHiRA: a few entries of the weight itself are trained."""
