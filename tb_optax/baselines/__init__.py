"""Baselines of the TempBalance paper that Optax does not have: SGDP, AdamP, spectral norm regularization."""

from tb_optax.baselines._projected import adamp as adamp
from tb_optax.baselines._projected import sgdp as sgdp
from tb_optax.baselines._spectral_norm import SpectralNormRegularizationState as SpectralNormRegularizationState
from tb_optax.baselines._spectral_norm import spectral_norm_regularization as spectral_norm_regularization
