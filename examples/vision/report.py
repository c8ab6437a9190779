"""Tables, tests and figures from results: `python -m examples.vision.report examples/vision/results`."""

from functools import partial

from examples.runs.report.markdown import report_command
from examples.vision.domain import VISION

main = partial(report_command, VISION)

if __name__ == "__main__":
    main()
