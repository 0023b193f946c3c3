"""Data: splits in memory or streamed, batches as a pure function of (seed, step), augmentation inside jit."""

from launch.data import augment, feed
from launch.data.sets import NAMES, DataSet, Spec
from launch.data.splits import Arrays, Split, Splits, Stream

__all__ = ["NAMES", "Arrays", "DataSet", "Spec", "Split", "Splits", "Stream", "augment", "feed"]
