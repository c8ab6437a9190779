"""From weights to eigenvalues: a plan, stacks of matrices, a solver for each platform, an approximation, devices."""
