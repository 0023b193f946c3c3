"""Benchmarks of composed image retrieval: CIRR, CIRCO, FashionIQ, GeneCIS, Scenes, as tasks that `evaluation` runs."""
