"""Convolutional networks with the module names of their PyTorch originals, and the parts they are made of.

`cnn` has the networks, `weights` reads PyTorch's tensors into them; `conv`, `pooling` and `activations` are twice
differentiable and fast at it. The packages pick from here and keep their own lists of models.
"""
