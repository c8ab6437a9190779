"""Training ResNet-18 gives PyTorch's losses, step by step. Skipped where PyTorch is not installed."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import oihw
from tiny import numpy_alpha, numpy_linear

from examples.paper.network import Network
from examples.paper.vision.domain import paper_layers
from examples.paper.vision.methods import create_optimizer, create_schedule
from examples.paper.vision.models import create_model
from examples.paper.vision.settings import Settings

torch = pytest.importorskip("torch")

BATCH, SIZE, STEPS, STEPS_PER_EPOCH = 16, 16, 6, 2
SETTINGS = Settings(width=0.25, epochs=8, learning_rate=0.05)


@pytest.mark.parametrize("method", [pytest.param("cal", marks=pytest.mark.slow), "tb"])
def test_losses_are_pytorchs_in_double_precision(method):
    """From the same weights on the same images, over three epochs: learning rates, weight decay, norms and refreshes.

    In single precision rounding grows tenfold a step while the network is new. Here only the logits are single.
    """
    random = np.random.default_rng(0)
    batches = [(random.standard_normal((BATCH, SIZE, SIZE, 3)), random.integers(0, 10, BATCH)) for _ in range(STEPS)]
    with jax.enable_x64(True):
        params, layers, losses = train(dataclasses.replace(SETTINGS, method=method), batches)
    scaled = layers if method == "tb" else ()
    np.testing.assert_allclose(losses, train_in_pytorch(params, scaled, batches), rtol=1e-6)


def train(settings, batches):
    """The weights by name at the start, the layers to balance, and the loss of each step."""
    shape = dict(width=settings.width, num_classes=10, image_shape=(SIZE, SIZE, 3), dtype=jnp.float64)
    model = nnx.jit(lambda key: create_model(settings.model, **shape, rngs=nnx.Rngs(key)))(jax.random.key(0, impl="rbg"))
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    params, batch_stats = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, batch_stats))
    network = Network(graphdef)
    layers = paper_layers(network, params, batch_stats, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float64))
    tx = create_optimizer(settings, create_schedule(settings, STEPS_PER_EPOCH), STEPS_PER_EPOCH, layers, layers)

    @jax.jit
    def step(params, batch_stats, state, images, labels):
        def loss_fn(params):
            logits, new = network.apply(params, batch_stats, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), batch_stats, state, loss

    names = lambda path: jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    first = {names(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    state, losses = tx.init(params), []
    for number, (images, labels) in enumerate(batches):
        if number % STEPS_PER_EPOCH == 0 and hasattr(tx, "refresh"):
            state = tx.refresh(state, params)
        params, batch_stats, state, loss = step(params, batch_stats, state, images, labels)
        losses.append(float(loss))
    return first, layers, losses


def train_in_pytorch(params, layers, batches):
    """The losses of PyTorch's layers and optimizer; each parameter a group of its own, as TempBalance's release has it."""
    network = ResNet18(16).double()
    layer_of = {path: layer.name for layer in layers for path in (layer.kernel, *layer.follows)}
    weights = {}
    for name, weight in network.named_parameters():
        name = name.replace(".", "/")
        name = next(of for of in (name, name.replace("weight", "kernel"), name.replace("weight", "scale")) if of in params)
        weight.data = torch.tensor(outputs_first(params[name]))
        weights[name] = weight
    assert weights.keys() == params.keys()
    groups = [{"params": [weight], "name": name} for name, weight in weights.items()]
    optimizer = torch.optim.SGD(groups, lr=SETTINGS.learning_rate, momentum=0.9, weight_decay=SETTINGS.weight_decay)
    losses = []
    for step, (images, labels) in enumerate(batches):
        if step % STEPS_PER_EPOCH == 0:
            annealed = 0.5 * (1 + math.cos(math.pi * (step // STEPS_PER_EPOCH) / SETTINGS.epochs))
            alphas = {layer.name: numpy_alpha(oihw(weights[layer.kernel].detach())) for layer in layers}
            scales = numpy_linear(alphas) if alphas else {}
            for group in optimizer.param_groups:
                group["lr"] = SETTINGS.learning_rate * annealed * scales.get(layer_of.get(group["name"]), 1.0)
        optimizer.zero_grad()
        logits = network(torch.tensor(images.transpose(0, 3, 1, 2)))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def outputs_first(weight):
    return weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T


class Block(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outputs)
        self.shortcut = torch.nn.Sequential()
        if stride > 1:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet18(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.layer1 = torch.nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        for stage in (2, 3, 4):
            inputs, outputs = width * 2 ** (stage - 2), width * 2 ** (stage - 1)
            blocks = torch.nn.Sequential(Block(inputs, outputs, 2), Block(outputs, outputs, 1))
            self.add_module(f"layer{stage}", blocks)
        self.linear = torch.nn.Linear(8 * width, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))
