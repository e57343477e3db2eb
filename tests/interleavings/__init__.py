"""Every order of the steps of a few operations on one instance, walked on the real code; see scheduler.py."""
