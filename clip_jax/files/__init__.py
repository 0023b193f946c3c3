"""Checkpoint files on disk and on the hub: layouts, weights, configuration."""
