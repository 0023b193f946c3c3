"""Composed image retrieval with pseudo tokens: φ networks, RTD's training of the text encoder, exact search.

Public names:

    rtd_jax.phi           load, save, init, Network, check_fits, from_torch, to_torch
    rtd_jax.losses        target_anchored, lincir, pic2word, searle_inversion, searle_distillation
    rtd_jax.metrics       recall_at, mean_average_precision_at, subset_recall_at
    rtd_jax.retrieval     top_k, rank_members
    rtd_jax.text.compose  queries: from images and modifications to query embeddings
    rtd_jax.search        index, search; the command
    rtd_jax.stages        the method as stages; rtd_jax.experiment.plan builds them from a config
"""
