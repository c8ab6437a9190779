"""Settings in words: names as the paper has them, and what sets a setting apart from those beside it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from examples.vision.settings import Settings, unused_by

_PARTS = {
    **{name: name.upper() for name in ("cal", "tb", "snr", "sgdr", "lars", "lamb")},
    "lookahead": "Lookahead",
    "sgdp": "SGDP",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamp": "AdamP",
}
# What a network is trained on and how long, whatever the method.
TASK = ("model", "dataset", "width", "train_split", "test_split", "epochs", "batch_size", "weight_decay", "dtype")
_ALWAYS_TOLD = ("dataset", "width", "epochs", "learning_rate")
_NONE = {"update_interval": "an epoch's steps"}
# Values that need no name beside them.
_SPEAKING = ("model", "dataset", "metric", "fit", "assignment", "control", "dtype")


def method_name(method: str) -> str:
    """`TB + SNR` for `tb+snr`."""
    return " + ".join(_PARTS.get(part, part) for part in method.split("+"))


def columns(settings: Mapping[str, Any]) -> dict[str, str]:
    """The text of each choice that the setting's method reads; the two ends of the scales are one choice."""
    reads = _read_by(settings["method"], settings["metric"])
    texts = {name: _text(name, settings[name]) for name in TASK}
    texts |= {name: _text(name, settings[name]) for name in reads if name not in TASK}
    if "min_scale" in texts:
        texts["scales"] = f"{texts.pop('min_scale')} to {texts.pop('max_scale')}"
    return texts


def varying(among: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns that have more than one text among these settings."""
    return [name for name, texts in _texts(among).items() if len(texts) > 1]


def in_common(among: Sequence[Mapping[str, Any]]) -> str:
    """What has one text only among these settings and is not what it is by default, as a phrase."""
    usual = {field.name: _text(field.name, field.default) for field in dataclasses.fields(Settings)}
    usual["scales"] = f"{usual['min_scale']} to {usual['max_scale']}"
    told = [
        _named(name, texts[0])
        for name, texts in _texts(among).items()
        if len(texts) == 1 and name != "model" and (name in _ALWAYS_TOLD or texts[0] != usual.get(name))
    ]
    return ", ".join(told)


def task_label(settings: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> str:
    """`ResNet18, cifar100`, and whatever else of the task varies among these settings."""
    texts = columns(settings)
    names = [name for name in varying(among) if name in TASK and name not in ("model", "dataset")]
    return ", ".join([texts["model"], texts["dataset"], *(_named(name, texts[name]) for name in names)])


def method_label(settings: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> str:
    """`TB`, and what sets it apart from the other settings of its method among these, which are of one task."""
    texts = columns(settings)
    names = varying(other for other in among if other["method"] == settings["method"])
    names = [name for name in names if (name, texts[name]) != ("control", "none")]
    return ", ".join([method_name(settings["method"]), *(_named(name, texts[name]) for name in names)])


def _texts(among: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Those of each column, each once; what a method does not read does not count."""
    found: dict[str, dict[str, None]] = {}
    for settings in among:
        for name, text in columns(settings).items():
            found.setdefault(name, {})[text] = None
    return {name: list(texts) for name, texts in found.items()}


def _read_by(method: str, metric: str) -> list[str]:
    """The settings that such a run depends on, but the method itself, the seed and the place of the data."""
    others = {"method", "seed", "data_dir"} | unused_by(method, metric)
    return [field.name for field in dataclasses.fields(Settings) if field.name not in others]


def _text(name: str, value: Any) -> str:
    if value is None:
        return _NONE.get(name, "default")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if name == "model":
        return value.upper().replace("RESNET", "ResNet")
    return value.replace("_", " ") if name in ("metric", "fit", "assignment") else str(value)


def _named(name: str, text: str) -> str:
    return text if name in _SPEAKING else f"{column_title(name)} {text}"


def column_title(name: str) -> str:
    return {"dataset": "data set", "model": "network"}.get(name, name.replace("_", " "))
