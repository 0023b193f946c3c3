"""Text-based last-layer retraining: debias a classifier with words (Park et al., WACV 2025, arXiv 2311.18291)."""
