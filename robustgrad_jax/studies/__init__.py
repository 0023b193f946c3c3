"""Studies over finished sweeps: how a weight is chosen, and the figures of the two theorems."""
