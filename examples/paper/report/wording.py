"""Settings in words: names as the paper has them, and what sets a setting apart from those beside it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from examples.paper.domain import Domain

_SPEAKING = ("model", "dataset", "tokens", "metric", "fit", "assignment", "control", "dtype")
"""The settings whose values are written without the setting's name."""
_NONE = {"update_interval": "an epoch's steps"}


def method_name(domain: Domain, method: str) -> str:
    """`TB + SNR` for `tb+snr`."""
    return " + ".join(domain.style.words.get(part, part) for part in method.split("+"))


def column_title(domain: Domain, name: str) -> str:
    """How tables and labels call a setting."""
    return domain.style.words.get(name, name.replace("_", " "))


def texts_of(domain: Domain, among: pd.Series) -> pd.DataFrame:
    """A line for each of these settings: the text of each choice that its method reads, NaN for the other choices."""
    return pd.DataFrame([_texts(domain, settings) for settings in among], among.index, dtype=object)


def varying(texts: pd.DataFrame) -> list[str]:
    """The columns that have more than one text."""
    return [str(name) for name, column in texts.items() if column.nunique() > 1]


def in_common(domain: Domain, among: pd.Series) -> str:
    """The choices that all these settings share and that are not the defaults, as a phrase."""
    usual = {name: _text(domain, name, value) for name, value in vars(domain.settings()).items()}
    usual["scales"] = f"{usual['min_scale']} to {usual['max_scale']}"
    texts = texts_of(domain, among)
    shared = {
        str(name): column.dropna().iloc[0] for name, column in texts.items() if column.nunique() == 1 and name != "model"
    }
    told = {name for name, text in shared.items() if name in domain.style.always_told or text != usual.get(name)}
    return ", ".join(_named(domain, name, text) for name, text in shared.items() if name in told)


def task_labels(domain: Domain, among: pd.Series) -> list[str]:
    """For each of these settings `ResNet18, cifar100`, and whatever else of the task varies among them."""
    texts = texts_of(domain, among)
    names = [name for name in varying(texts) if name in domain.style.task and name not in ("model", "dataset")]
    tasks = texts.to_dict("records")
    return [", ".join([of["model"], of["dataset"], *(_named(domain, name, of[name]) for name in names)]) for of in tasks]


def method_labels(domain: Domain, among: pd.Series) -> pd.Series:
    """For each setting of a task `TB`, and what sets it apart from the other settings of its method."""
    labels = {}
    for method, alike in among.groupby([settings["method"] for settings in among]):
        texts = texts_of(domain, alike)
        for key, of in texts[varying(texts)].iterrows():
            told = [
                _named(domain, str(name), text) for name, text in of.dropna().items() if (name, text) != ("control", "none")
            ]
            labels[key] = ", ".join([method_name(domain, str(method)), *told])
    return pd.Series(labels, dtype=object)


def _texts(domain: Domain, settings: Mapping[str, Any]) -> dict[str, str]:
    """The two ends of the scales are one choice."""
    left_out = {"method", "seed"} | domain.settings.places() | domain.settings.of(settings).unused()
    reads = [name for name in dict.fromkeys((*domain.style.task, *domain.settings.names())) if name not in left_out]
    texts = {name: _text(domain, name, settings[name]) for name in reads}
    if "min_scale" in texts:
        texts["scales"] = f"{texts.pop('min_scale')} to {texts.pop('max_scale')}"
    return texts


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
    return text if name in _SPEAKING else f"{column_title(domain, name)} {text}"
