"""A network that compiles in seconds, and the command `vision train` with it: `python -m small_network FLAGS`."""

import itertools
import signal
import sys

from flax import nnx

from examples.paper.__main__ import main
from examples.paper.parallel import run_command
from examples.paper.vision import domain
from examples.paper.vision.convolution import conv_general_dilated


class SmallNetwork(nnx.Module):
    """Three convolutions, each with a batch norm; the first is not balanced."""

    def __init__(self, channels: int, num_classes: int, rngs: nnx.Rngs):
        sizes = [channels, 8, 8, 8]
        self.convs = nnx.List([self._conv(*pair, rngs) for pair in itertools.pairwise(sizes)])
        self.norms = nnx.List([nnx.BatchNorm(size, momentum=0.9, rngs=rngs) for size in sizes[1:]])
        self.linear = nnx.Linear(8, num_classes, rngs=rngs)

    @staticmethod
    def _conv(inputs, outputs, rngs):
        own = dict(conv_general_dilated=conv_general_dilated, strides=2, padding=((1, 1), (1, 1)))
        return nnx.Conv(inputs, outputs, (3, 3), use_bias=False, rngs=rngs, **own)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.linear(x.mean(axis=(1, 2)))


def create_small_network(name="small", *, num_classes, image_shape, rngs, **_):
    return SmallNetwork(image_shape[-1], num_classes, rngs)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # heard even where the tests were started to ignore it
    domain.create_model = create_small_network
    run_command(lambda: main(["vision", "train", *sys.argv[1:]]))
