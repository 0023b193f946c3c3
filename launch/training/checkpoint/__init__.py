"""Checkpoints of a training state, verified when they are restored."""

from launch.training.checkpoint.leaves import abstract
from launch.training.checkpoint.manager import Checkpoints

__all__ = ["Checkpoints", "abstract"]
