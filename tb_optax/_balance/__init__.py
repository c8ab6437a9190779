"""From eigenvalues to a number for each layer: fits, metrics, assignments, and the state that is refreshed now and then."""
