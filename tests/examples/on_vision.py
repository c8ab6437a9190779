"""What all domains share, of images: the functions that tests of runs, sweeps and reports call."""

from functools import partial

from examples.paper import compare as compare_module
from examples.paper import grids, results, run_directory
from examples.paper import sweep as sweep_module
from examples.paper import train as train_module
from examples.paper.report import alphas, markdown, published, sections
from examples.paper.vision.domain import VISION

train = partial(train_module.train, VISION)
sweep = partial(sweep_module.sweep, VISION)
compare = partial(compare_module.compare, VISION)
report = partial(markdown.report, VISION)
RunDirectory = partial(run_directory.RunDirectory, domain=VISION)

load_grid = partial(grids.load_grid, VISION)
parse_changes = partial(grids.parse_changes, VISION)
ready_grids = partial(grids.ready_grids, VISION)
read_results = partial(results.read_results, VISION)
read_published = partial(published.read_published, VISION)
sections_of = partial(sections.sections_of, VISION)
other_runs = partial(sections.other_runs, VISION)
pooled_by_task = partial(alphas.pooled_by_task, VISION)
folder_of_run = partial(sweep_module._folder, VISION, sweep_module.Sweep("table1"))
name_of_run = partial(sweep_module._name, VISION)
