"""TempBalance for Optax: per-layer learning rates read off the spectra of the weights while a network trains."""

from tb_optax._balance import assignments as assignments
from tb_optax._balance import fits as fits
from tb_optax._balance import metrics as metrics
from tb_optax._balance.assignments import linear as linear
from tb_optax._balance.assignments import log2 as log2
from tb_optax._balance.assignments import sigmoid as sigmoid
from tb_optax._balance.assignments import sqrt as sqrt
from tb_optax._balance.assignments import step as step
from tb_optax._balance.fits import PowerLaw as PowerLaw
from tb_optax._balance.fits import fix_finger as fix_finger
from tb_optax._balance.fits import goodness_of_fit as goodness_of_fit
from tb_optax._balance.fits import median as median
from tb_optax._balance.metrics import alpha_weighted as alpha_weighted
from tb_optax._balance.metrics import pl_alpha_hill as pl_alpha_hill
from tb_optax._balance.metrics import spectral_norm as spectral_norm
from tb_optax._balance.sparsities import sparsities as sparsities
from tb_optax._layers.blocks import in_blocks as in_blocks
from tb_optax._layers.find import find_layers as find_layers
from tb_optax._layers.layer import Layer as Layer
from tb_optax._layers.layer import Layers as Layers
from tb_optax._layers.layer import LayersOrFn as LayersOrFn
from tb_optax._layers.trace import trace_layers as trace_layers
from tb_optax._report.report import LayerRecord as LayerRecord
from tb_optax._report.report import Report as Report
from tb_optax._report.report import report as report
from tb_optax._report.source import UnreadableError as UnreadableError
from tb_optax._spectra.solver import Solver as Solver
from tb_optax._spectra.spectra import spectra as spectra
from tb_optax._spectra.windows import Windows as Windows
from tb_optax._transforms.alphadecay import AlphaDecayState as AlphaDecayState
from tb_optax._transforms.alphadecay import alphadecay as alphadecay
from tb_optax._transforms.projected import adamp as adamp
from tb_optax._transforms.projected import sgdp as sgdp
from tb_optax._transforms.spectral_norm_regularization import (
    SpectralNormRegularizationState as SpectralNormRegularizationState,
)
from tb_optax._transforms.spectral_norm_regularization import spectral_norm_regularization as spectral_norm_regularization
from tb_optax._transforms.tempbalance import TempBalanceState as TempBalanceState
from tb_optax._transforms.tempbalance import tempbalance as tempbalance

__version__ = "0.1.0"
