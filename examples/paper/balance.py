"""TempBalance and AlphaDecay as the settings ask for them."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import optax

import tb_optax
from examples.paper.controls import CONTROLS
from examples.paper.settings import RunSettings
from tb_optax import fits

# What `--metric` names. A metric of your own goes here, and its name into `metric` in settings.py.
_METRICS: dict[str, tb_optax.Metric] = {
    "pl_alpha_hill": tb_optax.metrics.pl_alpha_hill,
    "spectral_norm": tb_optax.metrics.spectral_norm,
    "alpha_weighted": tb_optax.metrics.alpha_weighted,
}
_OF_A_FIT = ("pl_alpha_hill", "alpha_weighted")

FitTail: TypeAlias = Callable[..., fits.PowerLaw]
LayersOrFn: TypeAlias = Sequence[tb_optax.Layer] | Callable[[Any], Sequence[tb_optax.Layer]]


def tail_fit(settings: RunSettings) -> FitTail:
    """The fit of a spectrum's tail that the settings ask for."""
    if settings.fit == "median":
        return functools.partial(fits.median, tail_fraction=settings.tail_fraction)
    return getattr(fits, settings.fit)


class Refreshable(optax.GradientTransformationExtraArgs):
    """An optimizer with parts whose scales the loop refreshes, before each interval."""

    refresh: Callable[[optax.OptState, Any], optax.OptState]


def chain(*parts: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.chain`, with a `refresh` that calls the parts' own, if any has one."""
    own = [part.refresh for part in parts if hasattr(part, "refresh")]  # pyright: ignore[reportAttributeAccessIssue]
    if not own:
        return optax.chain(*parts)
    chained = Refreshable(*optax.chain(*parts))
    chained.refresh = lambda opt_state, params: functools.reduce(lambda state, each: each(state, params), own, opt_state)
    return chained


def with_tempbalance(
    optimizer: optax.GradientTransformation, settings: RunSettings, steps: int, layers: LayersOrFn
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, with TempBalance after it if the method has it.

    TempBalance scales the updates, decoupled weight decay included, as PyTorch's learning rates per layer do.

    Args:
      optimizer: the method without TempBalance.
      settings: the method and the numbers of TempBalance.
      steps: the number of steps of an interval.
      layers: the layers to balance.
    """
    if not settings.balanced:
        return optax.with_extra_args_support(optimizer)
    if settings.control == "embedding":
        return optax.with_extra_args_support(chain(optimizer, _scale_unmeasured(settings.max_scale, layers)))
    control = CONTROLS.get(settings.control, lambda assign: assign)
    options = _of_both(settings, steps, layers)
    if settings.control == "shape":
        options["metric"] = tb_optax.metrics.noise_of_shape
    if settings.refresh_fraction < 1:
        options["stop_step"] = math.ceil(settings.refresh_fraction * settings.intervals * steps) - 1
    balance = tb_optax.tempbalance(
        min_scale=settings.min_scale,
        max_scale=settings.max_scale,
        assign=control(getattr(tb_optax.assignments, settings.assignment)),
        transition_steps=settings.transition_steps,
        **options,
    )
    return optax.with_extra_args_support(chain(optimizer, _refreshed_by_loop(balance, settings, steps)))


def _scale_unmeasured(scale: float, layers: LayersOrFn) -> optax.GradientTransformation:
    """Scales the updates of the layers that are not measured, with what follows them, by one constant."""

    def mask(params: Any) -> Any:
        found = layers(params) if callable(layers) else layers
        paths = {path for layer in found if not layer.measured for path in (layer.kernel, *layer.follows)}
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        return jax.tree_util.tree_map_with_path(lambda path, _: name(path) in paths, params)

    return optax.masked(optax.scale(scale), mask)


def adamw_with_alphadecay(
    schedule: optax.Schedule, weight_decay: float, settings: RunSettings, steps: int, layers: LayersOrFn
) -> optax.GradientTransformation:
    """AdamW, with AlphaDecay for its decay.

    Args:
      schedule: of the learning rate.
      weight_decay: of a layer whose scale is 1.
      settings: what AlphaDecay does.
      steps: of an interval.
      layers: that are balanced.
    """
    decay = tb_optax.alphadecay(
        weight_decay,
        min_scale=settings.min_decay_scale,
        max_scale=settings.max_decay_scale,
        assign=getattr(tb_optax.assignments, settings.assignment),
        **_of_both(settings, steps, layers),
    )
    decay = _refreshed_by_loop(decay, settings, steps)
    return chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(schedule))


def _refreshed_by_loop(
    transformation: optax.GradientTransformationExtraArgs, settings: RunSettings, steps: int
) -> optax.GradientTransformationExtraArgs:
    """The transformation, with its `refresh` only if the loop is to call it."""
    if settings.refreshed_by_loop(steps):
        return transformation
    return optax.GradientTransformationExtraArgs(transformation.init, transformation.update)


def _of_both(settings: RunSettings, steps: int, layers: LayersOrFn) -> dict[str, Any]:
    interval, start = (None, 0) if settings.refreshed_by_loop(steps) else settings.refreshes(steps)
    return {
        "update_interval": interval,
        "start_step": start,
        "metric": create_metric(settings.metric, tail_fit(settings)),
        "layers": tb_optax.in_blocks(layers) if settings.blocks else layers,
        "windows": None if settings.spectrum_rows is None else tb_optax.Windows(settings.spectrum_rows),
    }


def create_metric(metric: str, fit: FitTail) -> Callable[..., jax.Array]:
    """What is read off a spectrum, by its name and the fit that it takes, if it takes one."""
    if metric == "relative_to_noise":
        return tb_optax.metrics.relative_to_noise(functools.partial(tb_optax.metrics.pl_alpha_hill, fit=fit))
    return functools.partial(_METRICS[metric], fit=fit) if metric in _OF_A_FIT else _METRICS[metric]
