"""Convolutional networks with the module names of their PyTorch originals, and their parts.

`cnn` has the networks, `weights` reads PyTorch's tensors into them; `conv`, `pooling` and `activations` have fast
derivatives of every order. Each package has its own list of models.
"""
