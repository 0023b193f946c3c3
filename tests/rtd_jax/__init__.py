"""Tests of rtd_jax."""
