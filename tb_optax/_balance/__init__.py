"""From eigenvalues to learning-rate scales: fits, metrics, assignments, and the state that refreshes update."""
