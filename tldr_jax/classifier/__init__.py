"""The classifier that is debiased: backbones, ERM training, features."""
