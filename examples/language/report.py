"""Tables, tests and figures from results: `python -m examples.language.report examples/language/results`."""

from functools import partial

from examples.language.domain import LANGUAGE
from examples.runs.report.markdown import report_command

main = partial(report_command, LANGUAGE)

if __name__ == "__main__":
    main()
