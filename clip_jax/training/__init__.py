"""Training a CLIP on images with captions: batches with hard negatives, steps, evaluation; the run is `experiment`."""
