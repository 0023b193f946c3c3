"""What only training needs: pairs, batches with hard negatives, evaluation. The run is `clip_jax.experiment`."""
