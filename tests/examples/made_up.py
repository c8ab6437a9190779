"""Made-up results: rows as finished runs leave them, without the training."""

import dataclasses
import json

import numpy as np

from examples.paper.vision.settings import Settings

LAYERS = ("conv1", "layer1/0/conv1", "layer1/0/conv2", "layer2/0/conv1", "layer2/0/conv2", "linear")
PROVENANCE = {
    **dict(date="2026-02-03T04:05:06+00:00", platform="cpu", device_kind="A processor", cores=2),
    **dict(versions={"python": "3.11.2", "jax": "0.10.2"}, commit="0123456789abcdef", changed=False),
}
SMALL = dict(dataset="cifar10_jpeg", train_split="train[:10000]", width=0.25, epochs=24)


def make_row(accuracy, layers=LAYERS, **changes):
    """A finished run with this test accuracy in percent; each layer's alpha falls to a value of its own."""
    settings = Settings(**{**SMALL, **changes}).resolved()
    random = np.random.default_rng([settings.seed, len(settings.method)])
    balanced = settings.method.startswith("tb")
    epochs = np.arange(1, settings.epochs + 1)
    ends = 2 + (0.15 if balanced else 0.35) * random.standard_normal(len(layers))
    falling = {layer: end + 2 * np.exp(-epochs / (0.2 * settings.epochs)) for layer, end in zip(layers, ends, strict=True)}
    inner = layers if settings.first_and_last else layers[1:-1]
    alphas = np.array([falling[layer] for layer in inner])
    scales = 0.5 + (alphas - alphas.min(0)) / np.ptp(alphas, 0) if balanced else np.ones_like(alphas)
    gradients = {layer: (0.1 * (1 + index) / epochs**0.3).tolist() for index, layer in enumerate(layers)}
    over_epochs = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "images_per_second")
    return {
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name != "data_dir"},
        **dict(test_accuracy=accuracy / 100, test_loss=1.0, train_accuracy=0.9, train_loss=0.3, seconds=360.0),
        "history": {
            "learning_rate": (settings.learning_rate / 2 * (1 + np.cos(np.pi * (epochs - 1) / settings.epochs))).tolist(),
            **{name: [0.5] * settings.epochs for name in over_epochs},
            "alpha": {layer: values.tolist() for layer, values in falling.items()},
            "scale": {layer: values.tolist() for layer, values in zip(inner, scales, strict=True)},
            "gradient_norm": gradients,
        },
        "spectra": {
            layer: _spectrum(random, end, 1000 + 100 * place)
            for place, (layer, end) in enumerate(zip(layers, ends, strict=True))
        },
        "provenance": PROVENANCE,
    }


def with_norms_within(row, steps=70, epochs=2):
    """The same run with gradient norms at every 30th step of the first epochs, some random numbers."""
    random = np.random.default_rng(0)
    points = -(-steps // 30)
    norms = {layer: random.lognormal(size=(epochs, points)).tolist() for layer in row["history"]["alpha"]}
    within = {"every": 30, "steps": steps, "norms": norms}
    return {**row, "history": {**row["history"], "gradient_norms_within": within}}


def with_spectra_within(row, steps=70, iterations=(0, 17, 35, 52, 70, 140, 350, 700)):
    """The same run with spectra of one weight, in the first epoch and later."""
    random = np.random.default_rng(0)
    spectra = [{"iteration": iteration, **_spectrum(random, 2 + 1 / (1 + iteration), 500)} for iteration in iterations]
    within = {"layer": LAYERS[2], "steps": steps, "spectra": spectra}
    return {**row, "history": {**row["history"], "spectra_within": within}}


def finals(rows, method, layers):
    """The final alphas of ResNet18's runs by this method, `(runs, layers)`."""
    chosen = [row for row in rows if (row["settings"]["method"], row["settings"]["model"]) == (method, "resnet18")]
    return np.array([[row["history"]["alpha"][layer][-1] for layer in layers] for row in chosen])


def table_cells(text, *start):
    """Of the one table row that begins with these cells, the other ones."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    (row,) = [row for row in found if row[: len(start)] == list(start)]
    return row[len(start) :]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _spectrum(random, alpha, eigenvalues):
    """Below 1 the bulk, above it a tail of that exponent; a few are zero but for rounding."""
    tail = (1 - random.random(eigenvalues // 2)) ** (-1 / (alpha - 1))
    bulk = random.random(eigenvalues - len(tail)) ** 2
    values = np.concatenate([tail, bulk, 1e-9 * random.random(3)])
    counts, edges = np.histogram(np.log10(values), 50)
    ends = [float(edges[0]), float(edges[-1])]
    return dict(log10_edges=ends, counts=counts.tolist(), alpha=alpha, threshold=1.0, eigenvalues=len(values))
