"""A PyTorch YOLOv8, written here from the published architecture, and the Flax one say the same of its weights.

Skipped where PyTorch is not installed.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.paper.detection.pretrained import load_weights
from examples.paper.detection.yolo import create_model

torch = pytest.importorskip("torch")
nn = torch.nn

CLASSES = 3


def unit(inputs, outputs, window, stride=1):
    module = nn.Module()
    module.conv = nn.Conv2d(inputs, outputs, window, stride, window // 2, bias=False)
    module.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
    module.forward = lambda x: nn.functional.silu(module.bn(module.conv(x)))
    return module


def bottleneck(channels, shortcut):
    module = nn.Module()
    module.cv1, module.cv2 = unit(channels, channels, 3), unit(channels, channels, 3)
    module.forward = lambda x: module.cv2(module.cv1(x)) + (x if shortcut else 0)
    return module


def c2f(inputs, outputs, count, shortcut):
    module, half = nn.Module(), outputs // 2
    module.cv1, module.cv2 = unit(inputs, 2 * half, 1), unit((2 + count) * half, outputs, 1)
    module.m = nn.ModuleList(bottleneck(half, shortcut) for _ in range(count))

    def forward(x):
        parts = list(module.cv1(x).chunk(2, 1))
        for each in module.m:
            parts.append(each(parts[-1]))
        return module.cv2(torch.cat(parts, 1))

    module.forward = forward
    return module


def sppf(channels):
    module, pool = nn.Module(), nn.MaxPool2d(5, 1, 2)
    module.cv1, module.cv2 = unit(channels, channels // 2, 1), unit(2 * channels, channels, 1)

    def forward(x):
        parts = [module.cv1(x)]
        for _ in range(3):
            parts.append(pool(parts[-1]))
        return module.cv2(torch.cat(parts, 1))

    module.forward = forward
    return module


def head(channels):
    module = nn.Module()
    branch = lambda inputs, between, outputs: nn.Sequential(
        unit(inputs, between, 3), unit(between, between, 3), nn.Conv2d(between, outputs, 1)
    )
    module.cv2 = nn.ModuleList(branch(each, 64, 64) for each in channels)
    module.cv3 = nn.ModuleList(branch(each, 64, CLASSES) for each in channels)
    module.dfl = nn.Module()
    module.dfl.conv = nn.Conv2d(16, 1, 1, bias=False)
    return module


def yolov8n():
    """Its layers by number, as sizes that are known of YOLOv8n; those without parameters are identities."""
    layers = {
        **{0: unit(3, 16, 3, 2), 1: unit(16, 32, 3, 2), 2: c2f(32, 32, 1, True), 3: unit(32, 64, 3, 2)},
        **{4: c2f(64, 64, 2, True), 5: unit(64, 128, 3, 2), 6: c2f(128, 128, 2, True), 7: unit(128, 256, 3, 2)},
        **{8: c2f(256, 256, 1, True), 9: sppf(256), 12: c2f(384, 128, 1, False), 15: c2f(192, 64, 1, False)},
        **{16: unit(64, 64, 3, 2), 18: c2f(192, 128, 1, False), 19: unit(128, 128, 3, 2), 21: c2f(384, 256, 1, False)},
        22: head((64, 128, 256)),
    }
    network = nn.Module()
    network.model = nn.ModuleList(layers.get(number, nn.Identity()) for number in range(23))
    return network


def outputs(network, images):
    """Every layer's, by its number; the head's as box and class logits of all places."""
    at, found, x = network.model, {}, images
    doubled = lambda y: nn.functional.interpolate(y, scale_factor=2, mode="nearest")
    for number in range(10):
        x = found[number] = at[number](x)
    found[12] = at[12](torch.cat([doubled(found[9]), found[6]], 1))
    found[15] = at[15](torch.cat([doubled(found[12]), found[4]], 1))
    found[16] = at[16](found[15])
    found[18] = at[18](torch.cat([found[16], found[12]], 1))
    found[19] = at[19](found[18])
    found[21] = at[21](torch.cat([found[19], found[9]], 1))
    flat = lambda branches: torch.cat(
        [branch(found[level]).flatten(2) for branch, level in zip(branches, (15, 18, 21), strict=True)], 2
    )
    return found, flat(at[22].cv2), flat(at[22].cv3)


def test_layer_by_layer_outputs_agree(tmp_path):
    torch.manual_seed(0)
    network = yolov8n().eval()
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "bn.bias")):
            value.normal_(0, 0.1)
        elif name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    command = [sys.executable, "-m", "examples.paper", "detection", "convert", "weights.pt", "weights.safetensors"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "arrays" in ended.stdout

    create = lambda: create_model(
        "yolov8n", classes=CLASSES, image_size=96, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(jax.random.key(0, impl="rbg"))
    )
    graphdef, params, batch_stats = nnx.split(nnx.jit(create)(), nnx.Param, ...)
    loaded = load_weights(tmp_path / "weights.safetensors", params, batch_stats)
    assert loaded.missing == ()

    @jax.jit
    def ours(images):
        model = nnx.merge(graphdef, loaded.params, loaded.batch_stats)
        model.set_attributes(use_running_average=True, raise_if_not_found=False)
        found, x = {}, images
        for number in range(10):
            x = found[number] = getattr(model, f"layer{number}")(x)
        return found, model(images)

    images = np.random.default_rng(0).uniform(size=(2, 96, 96, 3)).astype(np.float32)
    layers, predictions = ours(images)
    with torch.no_grad():
        theirs, distances, classes = outputs(network, torch.tensor(images).permute(0, 3, 1, 2))
    for number, own in layers.items():
        np.testing.assert_allclose(own, theirs[number].permute(0, 2, 3, 1), atol=2e-4, err_msg=f"layer {number}")
    np.testing.assert_allclose(predictions.distances.reshape(2, -1, 64), distances.permute(0, 2, 1), atol=1e-3)
    np.testing.assert_allclose(predictions.classes, classes.permute(0, 2, 1), atol=1e-3)
