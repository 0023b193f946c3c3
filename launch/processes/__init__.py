"""Several processes of one run: they stop together, and notice when one is lost."""
