"""What the weights of a checkpoint say: its layers read one by one, measured, told as a table, a page, figures."""
