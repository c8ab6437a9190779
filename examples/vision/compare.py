"""Shows runs side by side: `python -m examples.vision.compare runs/demo/cal runs/demo/tb`."""

from functools import partial

from examples.runs.compare import compare_command
from examples.vision.domain import VISION

main = partial(compare_command, VISION)

if __name__ == "__main__":
    main()
