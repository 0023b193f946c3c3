"""What is measured on a test set, and under attack."""
