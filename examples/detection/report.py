"""Tables, tests and figures from results: `python -m examples.detection.report examples/language/results`."""

from functools import partial

from examples.detection.domain import DETECTION
from examples.runs.report.markdown import report_command

main = partial(report_command, DETECTION)

if __name__ == "__main__":
    main()
