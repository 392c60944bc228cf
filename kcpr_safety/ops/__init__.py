"""Which equations is everything here made of? Pure functions of tensors; nothing else."""
