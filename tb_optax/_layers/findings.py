"""Records what a network does with its parameters, while its jaxpr is interpreted."""

from collections.abc import Collection, Mapping
from typing import Any

from tb_optax._layers.axes import Weight
from tb_optax._layers.layer import KernelAxes, Path


class Findings:
    """Records which parameters are kernels, the order of their use, and the parameters that follow them.

    Attributes:
      axes: the axes of each kernel, by kind.
      uses: the parameters that meet data, one tuple for each use, in order of use. A use is an embedding, the kernel of a
        product, or several joined kernels of one product. The tuple is empty if the kernel of a product is unclear.
      embeddings: parameters whose rows are looked up.
      unclear: for each parameter in a matrix product that is not a kernel, the reason.
      data: the inputs that layers read, unlike running statistics and random keys.
      reads: for each kernel that multiplies inputs of the network alone, which inputs.
      for_vectors: the matrices known to be applied to learned vectors and used for nothing else.
      recording: whether layers, uses and followers are recorded. They are not during the first interpretation, nor while a
        loop is repeated to find its carry.
    """

    def __init__(self, shapes: Mapping[Path, tuple[int, ...]]):
        self.axes: dict[Path, KernelAxes] = {}
        self.uses: list[tuple[Path, ...]] = []
        self.embeddings: set[Path] = set()
        self.reads: dict[Path, frozenset[Any]] = {}
        self.unclear: dict[Path, str] = {}
        self.data: set[Any] = set()
        self.for_vectors: frozenset[Path] = frozenset()
        self.recording = False
        self._shapes = shapes
        self._followed: dict[Path, dict[Path, frozenset[int]]] = {}
        """For each parameter, the kernels it follows, and the axes along which it is sliced there."""
        self._batched: dict[Path, frozenset[int]] = {}
        """For each kernel, the layer axes that are batch dimensions of its product; the others are sliced before it."""
        self._applied_to_vectors: set[Path] = set()
        """The matrices that are multiplied with a learned vector."""
        self._used_otherwise: set[Path] = set()
        """The parameters of kernels that meet data, or other matrices."""
        self._met: dict[Path, set[Path | None]] = {}
        """For each parameter that meets signals, the kernels whose outputs it meets along several axes. None stands for any
        other signal, and for an operation that is not arithmetic."""

    # While the jaxpr is interpreted

    def start_recording(self) -> None:
        """Starts the second interpretation, with `for_vectors` from the completed first one."""
        self.for_vectors = frozenset(self._applied_to_vectors - self._used_otherwise)
        self.recording = True

    def use(self, *kernels: Path) -> None:
        if self.recording:
            self.uses.append(kernels)

    def read_data(self, kernel: Path, inputs: frozenset[Any]) -> None:
        """A kernel multiplies inputs of the network that no layer has met before."""
        if self.recording:
            self.reads.setdefault(kernel, inputs)

    def use_together(self, first: int) -> None:
        """Merges all uses from index `first` on into one use."""
        if self.uses[first:]:
            self.uses[first:] = [tuple(path for paths in self.uses[first:] for path in paths)]

    def look_up(self, table: Path) -> None:
        if self.recording:
            self.embeddings.add(table)
        self.use(table)

    def layer(self, weight: Weight, kernel: Path, axes: KernelAxes) -> None:
        if self.recording:
            self._batched.setdefault(kernel, frozenset(axes.layer) - weight.layer_axes)
            self.axes.setdefault(kernel, axes)
            self.follow(weight, kernel)

    def note_unclear(self, weight: Weight, reason: str) -> None:
        if self.recording:
            self.unclear = dict.fromkeys(weight.paths, reason) | self.unclear

    def apply_to_vector(self, kernel: Path) -> None:
        self._applied_to_vectors.add(kernel)

    def use_otherwise(self, paths: Collection[Path]) -> None:
        """Records the parameters of a kernel that meets data or another matrix."""
        self._used_otherwise.update(paths)

    def follow(self, weight: Weight, kernel: Path) -> None:
        if self.recording:
            for path in sorted(weight.paths - {kernel}):
                self._followed.setdefault(path, {})[kernel] = weight.layer_axes

    def meet(self, weight: Weight, source: Path | None, arithmetic: bool) -> None:
        """Records that a parameter meets a signal, which is still the output of `source`."""
        if self.recording and weight.kernel is not None:
            met = self._met.setdefault(weight.kernel, set())
            if not arithmetic:
                met.add(None)
            elif len(self.running(weight)) > 1:
                met.add(source)

    def running(self, weight: Weight) -> list[int]:
        """The axes of its parameter along which a weight runs, except axes of size one."""
        return [axis for axis in weight.running if weight.kernel is not None and self._shapes[weight.kernel][axis] > 1]

    # After the interpretation

    def followers(self, kernel: Path) -> tuple[Path, ...]:
        """The parameters that follow this kernel and no other, and are stacked along the same axes."""
        sliced = frozenset(self.axes[kernel].layer) - self._batched[kernel]
        return tuple(
            path
            for path, sources in self._followed.items()
            if sources == {kernel: sliced} and path not in self.axes and self._fits(path, kernel)
        )

    def is_vector(self, path: Path) -> bool:
        """Whether a parameter is only a bias or scale, or a stack of them.

        A bias or scale meets signals along one axis, or along all axes that a bias of their layer has.
        """
        if path not in self._met or path in self.axes or path in self.embeddings or path in self.unclear:
            return False
        return all(source in self.axes and self._fits(path, source) for source in self._met[path])

    def _fits(self, path: Path, kernel: Path) -> bool:
        """Whether a parameter has the shape of this kernel's bias, stacked as the kernel is."""
        axes, shape = self.axes[kernel], self._shapes[path]
        own = [size for axis, size in enumerate(shape) if axis not in axes.layer]
        alike = lambda axis: axis < len(shape) and shape[axis] == self._shapes[kernel][axis] and bool(own)
        return all(map(alike, self._batched[kernel])) and sum(size > 1 for size in own) <= max(1, len(axes.output))
