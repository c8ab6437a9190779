"""A whole training program on one page, to read and copy: a residual network on handwritten digits, SGD and TempBalance.

`python -m examples.digits` takes a minute on a CPU; `--no-tempbalance` trains without. `examples/image_classification.py`
adds several devices, checkpoints and `--resume`; `python -m examples.paper vision` has the paper's networks and methods.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jaxtyping import Array, Float, Int
from sklearn.datasets import load_digits

import tb_optax

Images = Float[Array, "n 8 8 1"]
Labels = Int[Array, " n"]


def conv(inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3, stride: int = 1) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), strides=stride, use_bias=False, rngs=rngs)


def norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)


class Block(nnx.Module):
    """Two convolutions beside a shortcut. The first one may have a stride; then the shortcut has the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.conv1, self.norm1 = conv(inputs, outputs, rngs, stride=stride), norm(outputs, rngs)
        self.conv2, self.norm2 = conv(outputs, outputs, rngs), norm(outputs, rngs)
        self.shortcut = conv(inputs, outputs, rngs, size=1, stride=stride) if stride > 1 else None

    def __call__(self, x: Float[Array, "n h w inputs"]) -> Float[Array, "n h_out w_out outputs"]:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A stem, three stages, a mean over the image, and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem, self.norm = conv(1, 16, rngs), norm(16, rngs)
        self.blocks = nnx.List([Block(16, 16, 1, rngs), Block(16, 32, 2, rngs), Block(32, 64, 2, rngs)])
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Images) -> Float[Array, "n 10"]:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


def load() -> tuple[Images, Labels, Images, Labels]:
    """Images and labels to train on, and 360 to test on."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images, labels = jnp.asarray(images.reshape(-1, 8, 8, 1) / 8 - 1, jnp.float32), jnp.asarray(labels, jnp.int32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    return images[train], labels[train], images[test], labels[test]


def batches(images: Images, labels: Labels, size: int, random: np.random.Generator) -> Iterator[tuple[Images, Labels]]:
    """One epoch in a random order, in whole batches."""
    order = random.permutation(len(images))
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        yield images[rows], labels[rows]


@nnx.jit
def train_step(model: ResNet, optimizer: nnx.Optimizer, images: Images, labels: Labels) -> Float[Array, ""]:
    loss_fn = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def accuracy(model: ResNet, images: Images, labels: Labels) -> Float[Array, ""]:
    return jnp.mean(model(images).argmax(-1) == labels)


def main(
    tempbalance: bool = True, epochs: int = 16, batch_size: int = 64, learning_rate: float = 0.1, seed: int = 0
) -> float:
    """Trains, prints what happens, and returns the accuracy on the test images.

    Args:
      tempbalance: whether each layer has a learning rate of its own.
      epochs: passes over the training images.
      batch_size: images in each step.
      learning_rate: the learning rate at the start; a cosine takes it to zero.
      seed: seed of the initialization and of the order of the images.
    """
    train_images, train_labels, test_images, test_labels = load()
    steps = len(train_images) // batch_size
    model = ResNet(nnx.Rngs(seed))

    schedule = optax.cosine_decay_schedule(learning_rate, epochs * steps)
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    balance = None
    if tempbalance:
        balance = tb_optax.tempbalance(None, layers=tb_optax.trace_layers(model, test_images[:1]))
        tx = optax.chain(tx, balance)  # last, so that it scales the step
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    random, tested = np.random.default_rng(seed), 0.0
    for epoch in range(1, epochs + 1):
        if balance is not None:  # Computes the scales from the weights, once an epoch.
            optimizer.opt_state = balance.refresh(optimizer.opt_state, nnx.state(model, nnx.Param))
        model.train()
        losses = [train_step(model, optimizer, *batch) for batch in batches(train_images, train_labels, batch_size, random)]
        model.eval()
        tested = float(accuracy(model, test_images, test_labels))
        print(f"epoch {epoch:2d}  loss {np.mean(losses):.3f}  test {tested:.1%}")

    state = optax.tree_utils.tree_get(optimizer.opt_state, "TempBalanceState")
    if state is not None:
        print("\nlayer            alpha  scale")
        for name, scale in state.scale.items():
            print(f"{name:16s} {float(state.metric[name][...]):5.2f}  {float(scale[...]):5.2f}")
    return tested


if __name__ == "__main__":
    tyro.cli(main)
