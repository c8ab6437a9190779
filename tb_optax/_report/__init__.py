"""A report of a checkpoint: measures the weights layer by layer and shows them as a table, a page or figures."""
