"""What the weights of a network say: a record for each layer, from a parameter tree or a checkpoint's path."""

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
from tb_optax._report import formats, notebook
from tb_optax._report.adapters import products
from tb_optax._report.measure import Unsquarable, spectra_in_turn, unsquarable
from tb_optax._report.noise import against_noise
from tb_optax._report.record import LayerRecord
from tb_optax._report.source import CheckpointError, Source, of_tree
from tb_optax._report.text import escaped
from tb_optax._report.weights import all_of, natural, weights_of, with_gain
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos, check_solver
from tb_optax._spectra.windows import Windows, check_windows

# What a notebook's table shows; `to_pandas()` has all.
_SHOWN = {
    "layer": "layer",
    "shape": "shape",
    "alpha": "alpha",
    "noise": "noise's alpha",
    "noise_deviations": "deviations",
    "lambda_max": "λ max",
    "stable_rank": "stable rank",
    "beyond_noise": "beyond noise",
    "scale": "scale",
    "mark": "mark",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """Layers, measured: what `report` returns.

    Attributes:
      name: the checkpoint's path; `"params"` for a tree.
      format: of the checkpoint, for people.
      records: of each layer, in the order of their names, numbers as numbers; in the order of `layers` if those were given.
      fits: the names of the fits.
      left_out: why other arrays of two or more axes are no layers.
      others: how many arrays are no weights: an optimizer's state, statistics.
      complete: whether all layers were measured: false after an interrupt.
      windows: whose spectra these are, where they are not those of whole weights.
    """

    name: str
    format: str
    records: tuple[LayerRecord, ...]
    fits: tuple[str, ...]
    left_out: Mapping[Path, str]
    others: int = 0
    complete: bool = True
    windows: Windows | None = None

    def __repr__(self) -> str:
        words = notebook.in_words([record.alpha for record in self.records], [record.mark for record in self.records])
        return f"Report({self.name!r}, {self.format}: {words}{'' if self.complete else ', interrupted'})"

    def _repr_html_(self) -> str:
        return notebook.table(repr(self), self.rows(), _SHOWN) if self.records else f"<p>{escaped(repr(self))}</p>"

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each layer."""
        return [record.row() for record in self.records]

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
          ImportError: pandas is not installed.
        """
        return notebook.data_frame(self.rows())

    def html(self) -> str:
        """The page that `tb-optax report --html` writes: one document that needs no network."""
        from tb_optax._report.page import page

        return page([self])

    def summary(self) -> dict[str, dict[str, float]]:
        """Over the layers that have it: mean, median, standard deviation, least and greatest of each number."""
        rows = self.rows()
        found = {}
        for key in rows[0] if rows else ():
            values = [row[key] for row in rows if isinstance(row[key], float) and math.isfinite(row[key])]
            if values:
                found[key] = {
                    "mean": float(np.mean(values)),
                    "median": float(np.median(values)),
                    "deviation": float(np.std(values)),
                    "least": min(values),
                    "greatest": max(values),
                }
        return found

    def means(self) -> dict[str, float]:
        """The means over layers by which papers compare models (Martin et al., 2021).

        Of `alpha`, `alpha_weighted`, `log_alpha_norm`, `log_spectral_norm`, `log_norm` and `stable_rank`, each over the
        layers that have it. With windows of `alpha` alone, because the norms are of whole weights.
        """
        rows = [{"alpha": record.alpha} for record in self.records]
        if self.windows is None:
            rows = [
                {"alpha": record.alpha, "alpha_weighted": record.alpha_weighted}
                | record.norms
                | {"stable_rank": record.stable_rank}
                for record in self.records
            ]
        known = {key: [row[key] for row in rows if math.isfinite(row[key])] for key in (rows[0] if rows else ())}
        return {key: float(np.mean(values)) for key, values in known.items() if values}

    def plot(self, layer: str | None = None, *, ax: Any = None) -> Any:
        """Draws alpha by layer, or, given one's name, its spectrum with the fitted tails.

        Args:
          layer: the layer whose spectrum is drawn.
          ax: the `matplotlib.axes.Axes` to draw on; `None` for those of a new figure.

        Returns:
          The `matplotlib.figure.Figure`, which notebooks show and `savefig` writes.

        Raises:
          ValueError: there is no such layer.
          ImportError: matplotlib is not installed.
        """
        from tb_optax._report import figures

        return figures.alphas(self, ax) if layer is None else figures.spectrum(self.record(layer), ax)

    def record(self, layer: str) -> LayerRecord:
        """Of the layer of this name.

        Raises:
          ValueError: there is no such layer.
        """
        for record in self.records:
            if record.layer == layer:
                return record
        raise ValueError(f"layer={layer!r} is not in the report; it has: {', '.join(each.layer for each in self.records)}.")


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

    Layers, spectra, fits and scales are those of `tempbalance`, so what is told is what training would use. Nothing is
    trained, no code of the model is needed, and of a checkpoint one layer after another is read.

    Args:
      params_or_path: a parameter tree, or the path of a checkpoint: an Orbax directory (of a run, the newest step), a
        safetensors file or its index, a file of Flax's msgpack, or an `.npz` file. Pickles are refused.
      params: the keys below which the parameters are: `"model/params"`. By default, all of a tree; of a checkpoint, those
        below `params`, or else all that are no optimizer's state.
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
    """A report in the making: layers are known, and measured one after another."""

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
                "give a checkpoint of a network, or a smaller min_eigenvalues",
            )
        self._gains = {
            layer.kernel: gain for layer in self.layers for gain in layer.follows if split_path(gain)[1].endswith("_g")
        }
        self._done: list[tuple[Layer, np.ndarray]] = []
        self._too: list[list[Unsquarable]] = []

    @property
    def names(self) -> list[str]:
        """Of all records that there will be."""
        return [each.name for layer in self.layers for each in self.slices(layer)]

    @property
    def shapes(self) -> Mapping[Path, jax.ShapeDtypeStruct]:
        """Of the weights."""
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
        """Of the layers that have been measured."""
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
