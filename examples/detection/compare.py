"""Shows runs side by side: `python -m examples.detection.compare runs/adam runs/tb`."""

from functools import partial

from examples.detection.domain import DETECTION
from examples.runs.compare import compare_command

main = partial(compare_command, DETECTION)

if __name__ == "__main__":
    main()
