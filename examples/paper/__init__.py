"""The paper's experiments: training, sweeps, results and reports, by the command `python -m examples.paper`."""
