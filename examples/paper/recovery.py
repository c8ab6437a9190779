"""Finds the last interval on which the checkpoints and the log of a run agree, after damage or a kill."""

from collections.abc import Callable

from examples.paper.checkpoints import find_damage, saved
from examples.paper.errors import UserError
from examples.paper.run_directory import RunDirectory


def recover(directory: RunDirectory, tell: Callable[[str], None]) -> None:
    """Leaves the run at the last interval whose checkpoint is whole and that is in the log, so that it goes on from there.

    Later checkpoints are put aside, and a line tells what was wrong with them. Nothing happens to the folder of a run that
    has none yet.

    Raises:
      UserError: there are checkpoints, and none can be gone on from.
    """
    done, logged, interval = saved(directory.checkpoints), len(directory.log()), directory.domain.interval
    problems: dict[int, str] = {}
    for number in reversed(done):
        damaged = find_damage(directory.checkpoints / str(number))
        if damaged is not None:
            problems[number] = f"{damaged.relative_to(directory.path.absolute())} is damaged"
        elif number > logged:
            problems[number] = f"the log ends with {interval} {logged}, before checkpoint {number}"
        else:
            break
    else:
        if done:
            found = "; ".join(problems.values())
            raise UserError(f"{directory.path} cannot be resumed: {found}. Put back what is missing, or give another --out.")
        return
    for later, problem in problems.items():
        aside = directory.put_aside(directory.checkpoints / str(later))
        tell(f"{problem}; put into {aside}, going on from {interval} {number}")
