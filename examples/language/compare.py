"""Shows runs side by side: `python -m examples.language.compare runs/adam runs/tb`."""

from functools import partial

from examples.language.domain import LANGUAGE
from examples.runs.compare import compare_command

main = partial(compare_command, LANGUAGE)

if __name__ == "__main__":
    main()
