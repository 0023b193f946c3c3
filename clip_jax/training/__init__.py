"""What only training needs: pairs, batches with hard negatives, evaluation; the run is `experiment`."""
