"""RTD's fine-tuning of the text encoder."""
