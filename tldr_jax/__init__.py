"""Text-based last-layer retraining: debias a classifier with words (Park et al., WACV 2025, arXiv 2311.18291).

Public: `projector.fit` (from CLIP's embeddings to a classifier's features), `words` (lists, filters, their embeddings),
`retrain` (heads trained on projected text), `heads` and `heads.baselines`, `metrics` (accuracies over groups),
`experiment.plan` (everything, from a config).
"""
