"""Several reports side by side: what changed from one checkpoint to another, or over the steps of a run."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tb_optax._balance.fits import Fit, median
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import LayersOrFn, PyTree
from tb_optax._report import notebook
from tb_optax._report.adapters import is_adapter, merged, products
from tb_optax._report.changes import LayerChange, changes, shared_layers
from tb_optax._report.measuring import Measuring, opened
from tb_optax._report.record import LayerRecord
from tb_optax._report.report import Report
from tb_optax._report.source import CheckpointError, Source, printable
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos
from tb_optax._spectra.windows import Windows


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Reports of checkpoints, in order, with short names of their own.

    Attributes:
      reports: of two checkpoints or more.
      labels: the parts of their names that differ: `"step_100"`, `"step_200"`.
      changes: of two checkpoints, how the weight of each layer changed, by the layer's name.
    """

    reports: tuple[Report, ...]
    labels: tuple[str, ...]
    changes: Mapping[str, LayerChange] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        same = sum(change.is_unchanged for change in self.changes.values())
        changed = f", {same} of {len(self.changes)} layers unchanged" if self.changes else ""
        return f"Comparison({' to '.join(map(repr, self.labels))}: {len(self.layers)} layers{changed})"

    def _repr_html_(self) -> str:
        columns = {"layer": "layer", "shape": "shape"}
        if self.changes:
            columns |= {"relative_change": "|ΔW| of |W|", "rank_of_change": "rank of ΔW"}
        columns |= {f"alpha {label}": f"alpha {label}" for label in self.labels} | {"alpha change": "alpha change"}
        return notebook.table(repr(self), self.rows(), columns | ({"mark": "mark"} if self.changes else {}))

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
          ImportError: pandas is not installed.
        """
        return notebook.data_frame(self.rows())

    def html(self) -> str:
        """The page that `tb-optax report A B --html` writes: one document that needs no network."""
        from tb_optax._report.page import page

        return page(self.reports, list(self.changes.values()))

    @property
    def layers(self) -> list[str]:
        """The layers of all reports, in the order of the first report that has each."""
        return list(dict.fromkeys(record.layer for report in self.reports for record in report.records))

    def records(self, layer: str) -> list[LayerRecord | None]:
        """The record of a layer in each report that has it, else `None`."""
        return [next((each for each in report.records if each.layer == layer), None) for report in self.reports]

    def values(self, layer: str, key: str) -> list[float]:
        """A number of a layer in each report; NaN where there is none."""
        return [math.nan if record is None else float(record.row()[key]) for record in self.records(layer)]

    def change(self, layer: str, key: str = "alpha") -> float:
        """The change of a layer's number from the first report to the last; NaN if either has none."""
        values = self.values(layer, key)
        return values[-1] - values[0]

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each layer: `alpha`, `lambda_max`, `stable_rank` and `scale` of each report, and changes.

        Of two checkpoints also `relative_change` and `rank_of_change`, as `LayerChange` has them, and `mark`: `"unchanged"`,
        and the mark of the last report.
        """
        rows = []
        for layer in self.layers:
            shape = next(record.row()["shape"] for record in self.records(layer) if record is not None)
            row: dict[str, Any] = {"layer": layer, "shape": shape}
            for key in ("alpha", "lambda_max", "stable_rank", "scale"):
                row |= {f"{key} {label}": value for label, value in zip(self.labels, self.values(layer, key), strict=True)}
                row[f"{key} change"] = self.change(layer, key)
            if self.changes:
                row |= self.weight_change(layer)
            rows.append(row)
        return rows

    def weight_change(self, layer: str) -> dict[str, Any]:
        """How a layer's weight changed, and its marks; NaN where the two weights cannot be compared."""
        change, record = self.changes.get(layer), self.records(layer)[-1]
        marks = ("unchanged" if change and change.is_unchanged else "", record.mark if record else "")
        known = change.row() if change else {}
        return {
            "relative_change": known.get("relative_change", math.nan),
            "rank_of_change": known.get("rank_of_change", math.nan),
            "mark": ", ".join(filter(None, marks)),
        }


def compare(
    before: PyTree | str | os.PathLike[str],
    after: PyTree | str | os.PathLike[str],
    *,
    params: str | None = None,
    layers: LayersOrFn = find_layers,
    fits: Sequence[Fit] = (median,),
    solver: Exact | Lanczos = DEFAULT_SOLVER,
    windows: Windows | None = None,
) -> Comparison:
    """Measures two networks of one architecture, and how each weight changed from one to the other.

    Args:
      before: a parameter tree, or the path of a checkpoint, as in `report`.
      after: the same network later: fine-tuned, or at a later step. Or a LoRA adapter of PEFT on `before`: then the change
        of a weight is `B A`, times `lora_alpha / r` as `adapter_config.json` has it. The factors in a tree are taken as they
        are.
      params: the keys below which the parameters are, in both.
      layers: the layers, or a function that finds them in a tree of shapes.
      fits: as in `report`.
      solver: how the spectra of the two networks are computed; those of changes are exact.
      windows: as in `report`; changes are of whole weights.

    Returns:
      The reports of both, and for each layer `|ΔW| / |W|` and the rank of what was learned.

    Raises:
      CheckpointError: (a `ValueError`) a checkpoint cannot be read, or holds no layers.
      ValueError: the two share no layer of one name and shape.

    Example:
      >>> import jax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> before = {name: {"kernel": jax.random.normal(key, (64, 128))} for name, key in zip(("a", "b"), keys)}
      >>> update = 0.1 * jax.random.normal(keys[2], (64, 3)) @ jax.random.normal(keys[3], (3, 128))
      >>> after = before | {"b": {"kernel": before["b"]["kernel"] + update}}
      >>> rows = tb_optax.compare(before, after).rows()
      >>> [(row["layer"], round(row["relative_change"], 1), row["rank_of_change"]) for row in rows]
      [('a', 0.0, 0), ('b', 0.2, 3)]
    """
    sources = in_turn([opened(before), opened(after)])
    first, second = (Measuring(source, params, layers, fits, solver=solver, windows=windows) for source in sources)
    check_shared(first, second)
    first.run()
    second.run()
    found = [change for of_layer in changes(first, second) for change in of_layer]
    return side_by_side([first.report(), second.report()], found)


def check_shared(first: Measuring, second: Measuring) -> None:
    """Refuses two networks of which no layer can be compared."""
    if not shared_layers(first, second):
        names = f"before={printable(first.name)} and after={printable(second.name)}"
        raise ValueError(
            f"compare: {names} share no layer of one name and shape; give two checkpoints of one network, or params= for "
            "the keys below which both have their weights."
        )


def in_turn(sources: Sequence[Source]) -> list[Source]:
    """Adapters after a base added to the base; adapters without one as `B A`.

    Raises:
      CheckpointError: an adapter comes before its base.
    """
    base = sources[0]
    if is_adapter(base) and not all(map(is_adapter, sources)):
        raise CheckpointError(base.name, "a LoRA adapter before its base", "give the base first, then the adapter")
    has_base = len(sources) > 1 and not is_adapter(base)
    return [merged(base, source) if has_base and is_adapter(source) else products(source) for source in sources]


def side_by_side(reports: Sequence[Report], changed: Sequence[LayerChange] = ()) -> Comparison:
    """Reports side by side.

    Raises:
      ValueError: there are fewer than two.
    """
    if len(reports) < 2:
        raise ValueError(f"side_by_side: {len(reports)} reports; give at least two.")
    named = labels([report.name for report in reports])
    return Comparison(tuple(reports), tuple(named), {change.layer: change for change in changed})


def labels(names: Sequence[str]) -> list[str]:
    """The part of each path that differs: no folders that all share, and no file name if the folders differ."""
    parts = [PurePath(os.path.normpath(name)).parts for name in names]
    if len(set(parts)) < len(parts):
        return [f"{number + 1}: {own[-1]}" for number, own in enumerate(parts)]
    start = _shared(parts)
    end = _shared([own[start:][::-1] for own in parts])
    named = [own[start : len(own) - end] or own[-1:] for own in parts]
    folders = [own[:-1] if len(own) > 1 and PurePath(own[-1]).suffix else own for own in named]
    return ["/".join(own) for own in (folders if len(set(folders)) == len(parts) else named)]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many of their first parts are the same for all."""
    return next((n for n, each in enumerate(zip(*parts, strict=False)) if len(set(each)) > 1), min(map(len, parts)))
