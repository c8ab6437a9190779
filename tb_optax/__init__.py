"""TempBalance for Optax: layer-wise learning rates, computed from the eigenvalue spectra of the weights during training."""

import importlib
from typing import TYPE_CHECKING, Any

from tb_optax import baselines as baselines
from tb_optax._balance import assignments as assignments
from tb_optax._balance import fits as fits
from tb_optax._balance import metrics as metrics
from tb_optax._balance.assignments import Assignment as Assignment
from tb_optax._balance.fits import Fit as Fit
from tb_optax._balance.metrics import Metric as Metric
from tb_optax._balance.scalars import scalars as scalars
from tb_optax._balance.sparsities import sparsities as sparsities
from tb_optax._layers.blocks import in_blocks as in_blocks
from tb_optax._layers.find import find_layers as find_layers
from tb_optax._layers.layer import Layer as Layer
from tb_optax._layers.layer import Layers as Layers
from tb_optax._layers.trace import trace_layers as trace_layers
from tb_optax._spectra.options import Exact as Exact
from tb_optax._spectra.options import Lanczos as Lanczos
from tb_optax._spectra.spectra import spectra as spectra
from tb_optax._spectra.windows import Windows as Windows
from tb_optax._transforms.alphadecay import AlphaDecayState as AlphaDecayState
from tb_optax._transforms.alphadecay import alphadecay as alphadecay
from tb_optax._transforms.llr import llr as llr
from tb_optax._transforms.tempbalance import TempBalanceState as TempBalanceState
from tb_optax._transforms.tempbalance import TempBalanceTransitionState as TempBalanceTransitionState
from tb_optax._transforms.tempbalance import tempbalance as tempbalance

if TYPE_CHECKING:
    from tb_optax._report.changes import LayerChange as LayerChange
    from tb_optax._report.comparison import Comparison as Comparison
    from tb_optax._report.comparison import compare as compare
    from tb_optax._report.measuring import report as report
    from tb_optax._report.record import LayerRecord as LayerRecord
    from tb_optax._report.report import Report as Report
    from tb_optax._report.source import CheckpointError as CheckpointError

__version__ = "0.1.0"

# Imported on first use, because training does not need the readers of checkpoints.
_LAZY = {
    "compare": "tb_optax._report.comparison",
    "Comparison": "tb_optax._report.comparison",
    "LayerChange": "tb_optax._report.changes",
    "LayerRecord": "tb_optax._report.record",
    "Report": "tb_optax._report.report",
    "report": "tb_optax._report.measuring",
    "CheckpointError": "tb_optax._report.source",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
