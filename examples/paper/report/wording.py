"""Settings in words: names as the paper has them, and what sets a setting apart from those beside it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from examples.paper.domain import Domain

_NONE = {"update_interval": "an epoch's steps"}


def method_name(domain: Domain, method: str) -> str:
    """`TB + SNR` for `tb+snr`."""
    return " + ".join(domain.style.words.get(part, part) for part in method.split("+"))


def columns(domain: Domain, settings: Mapping[str, Any]) -> dict[str, str]:
    """The text of each choice that the setting's method reads; the two ends of the scales are one choice."""
    left_out = {"method", "seed"} | domain.settings.places() | domain.settings.of(settings).unused()
    reads = [*domain.style.task, *(name for name in domain.settings.names() if name not in domain.style.task)]
    texts = {name: _text(domain, name, settings[name]) for name in reads if name not in left_out}
    if "min_scale" in texts:
        texts["scales"] = f"{texts.pop('min_scale')} to {texts.pop('max_scale')}"
    return texts


def varying(domain: Domain, among: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns that have more than one text among these settings."""
    return [name for name, texts in _texts(domain, among).items() if len(texts) > 1]


def in_common(domain: Domain, among: Sequence[Mapping[str, Any]]) -> str:
    """What has one text only among these settings and is not what it is by default, as a phrase."""
    usual = {name: _text(domain, name, value) for name, value in vars(domain.settings()).items()}
    usual["scales"] = f"{usual['min_scale']} to {usual['max_scale']}"
    told = [
        _named(domain, name, texts[0])
        for name, texts in _texts(domain, among).items()
        if len(texts) == 1 and name != "model" and (name in domain.style.always_told or texts[0] != usual.get(name))
    ]
    return ", ".join(told)


def task_label(domain: Domain, settings: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> str:
    """`ResNet18, cifar100`, and whatever else of the task varies among these settings."""
    texts = columns(domain, settings)
    names = [name for name in varying(domain, among) if name in domain.style.task and name not in ("model", "dataset")]
    return ", ".join([texts["model"], texts["dataset"], *(_named(domain, name, texts[name]) for name in names)])


def method_label(domain: Domain, settings: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> str:
    """`TB`, and what sets it apart from the other settings of its method among these, which are of one task."""
    texts = columns(domain, settings)
    names = varying(domain, (other for other in among if other["method"] == settings["method"]))
    names = [name for name in names if (name, texts[name]) != ("control", "none")]
    return ", ".join([method_name(domain, settings["method"]), *(_named(domain, name, texts[name]) for name in names)])


def _texts(domain: Domain, among: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Those of each column, each once; what a method does not read does not count."""
    found: dict[str, dict[str, None]] = {}
    for settings in among:
        for name, text in columns(domain, settings).items():
            found.setdefault(name, {})[text] = None
    return {name: list(texts) for name, texts in found.items()}


def _text(domain: Domain, name: str, value: Any) -> str:
    if value is None:
        return _NONE.get(name, "default")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if name == "model":
        return domain.style.words.get(value, value)
    return value.replace("_", " ") if name in ("metric", "fit", "assignment") else str(value)


def _named(domain: Domain, name: str, text: str) -> str:
    return text if name in domain.style.speaking else f"{column_title(domain, name)} {text}"


def column_title(domain: Domain, name: str) -> str:
    return domain.style.words.get(name, name.replace("_", " "))
