"""From weights to eigenvalues: stacks of matrices, a solver for each platform, approximation, each device's share."""
