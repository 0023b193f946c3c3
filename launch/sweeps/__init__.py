"""Many runs of one config: what they are, where they lie, and the executors that train them."""
