"""Train classifiers whose attributions resist perturbation (local gradient alignment)."""
