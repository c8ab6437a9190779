"""Measures the layers of a parameter tree or a checkpoint, one after another, for a report."""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tb_optax._balance.assignments import linear
from tb_optax._balance.attributes import all_declare
from tb_optax._balance.fits import Fit, PowerLaw, check_fit_of_solver, fit_spectra, median
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import Layer, LayersOrFn, Path, PyTree, kernel_shape, resolve_layers, split_path
from tb_optax._report import formats
from tb_optax._report.adapters import products
from tb_optax._report.layer_spectra import Unsquarable, spectra_in_turn, unsquarable
from tb_optax._report.noise import against_noise
from tb_optax._report.record import LayerRecord
from tb_optax._report.report import Report
from tb_optax._report.source import CheckpointError, Source, of_tree
from tb_optax._report.weights import all_of, natural, weights_of, with_gain
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos, check_solver
from tb_optax._spectra.windows import Windows, check_windows


def report(
    params_or_path: PyTree | str | os.PathLike[str],
    *,
    params: str | None = None,
    layers: LayersOrFn = find_layers,
    fits: Sequence[Fit] = (median,),
    min_scale: float = 0.5,
    max_scale: float = 1.5,
    solver: Exact | Lanczos = DEFAULT_SOLVER,
    windows: Windows | None = None,
) -> Report:
    """Measures every layer of a network: its spectrum, the power law of its tail, the scale TempBalance would give it.

    Layers, spectra, fits and scales are those of `tempbalance`, so the report shows what training would use. It needs no
    code of the model, and reads a checkpoint one layer at a time.

    Args:
      params_or_path: a parameter tree, or the path of a checkpoint: an Orbax directory (of a run, the newest step), or a
        file of safetensors, PyTorch, Keras, ONNX, Flax's msgpack or NumPy. No code of the file runs.
      params: the keys above the parameters: `"model/params"`. By default, all of a tree; of a checkpoint, the arrays below
        `params`, or else all but an optimizer's state.
      layers: the layers, or a function that finds them in a tree of shapes.
      fits: functions from spectra to `PowerLaw`, such as `median` and `goodness_of_fit`; the first decides scales.
      min_scale: the scale at the least alpha.
      max_scale: the scale at the greatest.
      solver: how spectra are computed; `Lanczos()` approximates them, for large models.
      windows: windows to take from every matrix; `None` for whole matrices.

    Returns:
      The records of all layers.

    Raises:
      CheckpointError: (a `ValueError`) the checkpoint cannot be read, or holds no layers.
      ValueError: two fits have the same name; `layers` does not fit.
      TypeError: `fits`, `layers`, `solver` or `windows` has the wrong type.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}}
      >>> report = tb_optax.report(params)
      >>> [(row["layer"], row["shape"], round(row["alpha"], 1)) for row in report.rows()]
      [('dense', '64x128', 2.8)]
    """
    source = products(opened(params_or_path))
    measuring = Measuring(source, params, layers, fits, min_scale, max_scale, solver, windows)
    measuring.run()
    return measuring.report()


def opened(params_or_path: PyTree | str | os.PathLike[str]) -> Source:
    """A checkpoint's or a tree's arrays."""
    is_path = isinstance(params_or_path, (str, os.PathLike))
    return formats.open_checkpoint(params_or_path) if is_path else of_tree(params_or_path)


class Measuring:
    """A report in the making: the layers are known and are measured one after another."""

    def __init__(
        self,
        source: Source,
        params: str | None = None,
        layers: LayersOrFn = find_layers,
        fits: Sequence[Fit] = (median,),
        min_scale: float = 0.5,
        max_scale: float = 1.5,
        solver: Exact | Lanczos = DEFAULT_SOLVER,
        windows: Windows | None = None,
    ):
        if layers is find_layers:
            layers = functools.partial(find_layers, layout=source.layout)
        check_solver("report", solver)
        check_windows("report", windows)
        if not 0 <= min_scale <= max_scale < math.inf:
            raise ValueError(
                f"report: min_scale={min_scale} and max_scale={max_scale}; give 0 or more, the smaller one first."
            )
        self._fits = _by_name(fits)
        check_fit_of_solver("report", list(self._fits.values()), solver)
        self._assign = functools.partial(linear, min_scale=min_scale, max_scale=max_scale)
        self.name = source.name
        self._source, self._solver, self._windows = source, solver, windows
        as_it_is = source.tree is not None and params is None
        self._weights = all_of(source) if as_it_is else weights_of(source, params)
        found, _ = resolve_layers(layers, source.tree if as_it_is else self._weights.shapes)
        found = found.measured
        # A tree has no order, so names give one.
        ordered = sorted(found, key=lambda layer: natural(layer.kernel)) if callable(layers) else found
        self.layers, too_large = _within_memory(ordered, self._weights.shapes)
        self._left_out = {**found.left_out, **source.unreadable, **too_large}
        if not self.layers:
            reasons = [f"{path}: {reason}" for path, reason in self._left_out.items()] or ["no array has two axes"]
            more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            raise CheckpointError(
                source.name,
                f"it has no layers ({'; '.join(reasons[:3])}{more})",
                "give a checkpoint of a network, a smaller min_eigenvalues, or a narrower exclude",
            )
        self._gains = {
            layer.kernel: gain for layer in self.layers for gain in layer.follows if split_path(gain)[1].endswith("_g")
        }
        self._done: list[tuple[Layer, np.ndarray]] = []
        self._too: list[list[Unsquarable]] = []

    @property
    def names(self) -> list[str]:
        """The names of all records to come."""
        return [each.name for layer in self.layers for each in self.slices(layer)]

    @property
    def shapes(self) -> Mapping[Path, jax.ShapeDtypeStruct]:
        """The shapes of the weights."""
        return self._weights.shapes

    def weight(self, path: Path) -> Any:
        """Reads the weight of a layer, as it is applied: with its gain under weight norm."""
        read = lambda path: self._source.read(self._weights.full_paths[path])
        return with_gain(read(path), read(self._gains[path])) if path in self._gains else read(path)

    def steps(self) -> Generator[Layer]:
        """Measures; yields each layer when it is done."""
        is_free = isinstance(self._solver, Exact) and self._solver.method == "auto"
        gram = is_free and all(all_declare(fit, "gram") for fit in self._fits.values())
        results = spectra_in_turn(self.layers, self.shapes, self.weight, self._solver, self._windows, gram)
        with contextlib.closing(results):
            for layer, result in zip(self.layers, results, strict=True):
                self._too.append(unsquarable(result, layer, self.weight))
                self._done.append((layer, result))
                yield layer

    def run(self) -> None:
        """Measures all layers."""
        with contextlib.closing(self.steps()) as steps:
            for _ in steps:
                pass

    def report(self) -> Report:
        """The report on the layers measured so far."""
        spectra = [eigenvalues for _, result in self._done for eigenvalues in result]
        laws = {name: fit_spectra(fit, spectra) for name, fit in self._fits.items()}
        each = zip(*laws.values(), strict=True)
        named = [own for layer, _ in self._done for own in self.slices(layer)]
        too: list[Unsquarable] = [reason for reasons in self._too for reason in reasons]
        records: list[LayerRecord] = [
            self._record(of, dict(zip(laws, own, strict=True)), eigenvalues, reason)
            for of, own, eigenvalues, reason in zip(named, each, spectra, too, strict=True)
        ]
        alphas = np.array([record.alpha for record in records], np.float32)
        scales = np.asarray(self._assign(jnp.asarray(alphas))) if len(records) else []
        return Report(
            self._source.name,
            self._source.format,
            tuple(dataclasses.replace(record, scale=float(scale)) for record, scale in zip(records, scales, strict=True)),
            tuple(self._fits),
            self._left_out,
            self._weights.others,
            len(self._done) == len(self.layers),
            self._windows,
        )

    def _record(self, of: "_Slice", laws: Mapping[str, PowerLaw], eigenvalues: np.ndarray, too: Unsquarable) -> LayerRecord:
        fit = next(iter(self._fits.values()))
        approximate = isinstance(self._solver, Lanczos) and of.sides[0] >= self._solver.min_size
        noise = against_noise(
            eigenvalues,
            float(next(iter(laws.values())).alpha),
            of.sides,
            of.matrices,
            unknown_spectrum="windows overlap, so noise's spectrum is not known" if self._windows else "",
            unknown_alpha="the alpha of noise is known for the median fit only"
            if fit is not median
            else "the spectrum is approximate"
            if approximate
            else "",
        )
        no_rank = (
            "windows overlap"
            if self._windows
            else "the spectrum is approximate"
            if approximate
            else "Gram products do not resolve small singular values"
            if isinstance(self._solver, Exact) and self._solver.method == "gram"
            else ""
        )
        shared = (of.name, of.kernel, of.shape, of.matrices, laws, eigenvalues)
        return LayerRecord(*shared, noise=noise, no_rank=no_rank, too=too)

    def slices(self, layer: Layer) -> "list[_Slice]":
        """Each layer of a stack, or the one."""
        shape = self._weights.shapes[layer.kernel].shape
        axes = kernel_shape(layer, shape)
        own = tuple(size for axis, size in enumerate(shape) if axis not in axes.layer_axes)
        sides = (min(axes.rows, axes.columns), max(axes.rows, axes.columns))
        names = [layer.name + "".join(f"[{place}]" for place in index) for index in np.ndindex(axes.stack)]
        return [_Slice(name, layer.kernel, own, axes.matrices, sides) for name in names]


class _Slice(NamedTuple):
    """A layer of a stack, or the one: its matrices share a spectrum."""

    name: str
    kernel: Path
    shape: tuple[int, ...]
    matrices: int
    sides: tuple[int, int]


def _by_name(fits: Sequence[Fit]) -> dict[str, Fit]:
    if callable(fits) or isinstance(fits, (str, Mapping)) or not all(map(callable, fits)) or not len(fits):
        raise TypeError(f"report: fits={fits!r} must be a sequence of functions, such as (tb_optax.fits.median,).")
    names = [_name(fit) for fit in fits]
    if "weighted" in names[1:]:
        raise ValueError(
            "report: fits has the name 'weighted', and alpha_weighted is a column; give the function another name."
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"report: fits has two of the name {name!r}; wrap one in a function of another name.")
    return dict(zip(names, fits, strict=True))


def _name(fit: Callable[..., Any]) -> str:
    while isinstance(fit, functools.partial):
        fit = fit.func
    return getattr(fit, "__name__", type(fit).__name__)


def _within_memory(found: Sequence[Layer], shapes: Mapping[Path, Any]) -> tuple[list[Layer], dict[Path, str]]:
    """The layers whose weights this machine can hold in float32, and why not the others."""
    kept, reasons = [], {}
    for layer in found:
        gigabytes = 4 * math.prod(shapes[layer.kernel].shape) / 2**30
        if gigabytes > _memory() / 2**30 / 2:
            reasons[layer.kernel] = f"of shape {shapes[layer.kernel].shape}, it takes {gigabytes:.3g} GiB in float32"
        else:
            kept.append(layer)
    return kept, reasons


def _memory() -> float:
    """Bytes of this machine; without end where it does not say."""
    names = getattr(os, "sysconf_names", {})
    known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else math.inf
