"""Ahead-of-time compilation: a plan's programs through the compilers of TPUs and GPUs, without such a device."""
