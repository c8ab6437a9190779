"""A section's tables in Markdown, and what is said of them."""

from collections.abc import Iterator, Mapping

import pandas as pd

from examples.paper.report.alphas import agreements, spreads
from examples.paper.report.published import Published
from examples.paper.report.sections import Section, comparisons
from examples.paper.report.statistics import Paired, p_of_equal_means
from examples.paper.report.wording import column_title, method_name, texts_of, varying

_DASH = "—"


def result_table(section: Section) -> Iterator[str]:
    """A line for each setting: results of its runs, and what is published of it."""
    domain, entries = section.domain, section.entries
    chosen_by = domain.style.chosen_by
    texts = texts_of(domain, entries.settings)
    table = texts[list(dict.fromkeys(("model", *varying(texts))))].fillna("")
    table = table.rename(columns=lambda name: column_title(domain, name))
    table["method"] = [method_name(domain, method) for method in entries.method]
    table["runs"] = [f"{done}/{wanted}" for done, wanted in zip(entries.done, entries.wanted, strict=True)]
    if chosen_by is not None:
        held_out = entries.held_out.map("{:.3f}".format).where(~entries.compared, entries.held_out.map("**{:.3f}**".format))
        table[column_title(domain, chosen_by)] = held_out.where(entries.done > 0, _DASH)
    results = [section.results(key) for key in entries.index]
    table[domain.measure.title] = ["not run" if of.empty else _spread(of.mean(), of.std()) for of in results]
    sources = list(dict.fromkeys(figure.source for figures in entries.published for figure in figures))
    told = lambda figure: f"{_spread(figure.mean, figure.deviation)} [{sources.index(figure.source) + 1}]"
    table["published"] = [", ".join(map(told, figures)) or _DASH for figures in entries.published]
    pairs = zip(results, entries.published, strict=True)
    minus = [", ".join(_minus_published(of, figure) for figure in figures) or _DASH for of, figures in pairs]
    table["ours - published"] = minus
    yield markdown(table)
    if chosen_by is not None and not entries.compared.all():
        yield (
            f"The {column_title(domain, chosen_by)} is the least of a run, the mean over its seeds. In bold: of each "
            "method's learning rates the one with the least, over the seeds that all of them have. All below is of these."
        )
    if sources:
        listed = "; ".join(f"[{mark}] {source}" for mark, source in enumerate(sources, 1))
        welch = "" if section.runs.empty else " The differences' p is Welch's t test's, uncorrected."
        yield f"Published: {listed}.{welch}"


def comparison_table(section: Section) -> Iterator[str]:
    """Of settings with the same seeds."""
    domain, found = section.domain, comparisons(section)
    if found.empty:
        return
    tested = found.verdict.notna()
    lower = "" if domain.measure.higher_is_better else ", and lower is better"
    rates = f"with the {method_name(domain, domain.style.baseline)} of the same learning rate where the grid has one"
    if domain.style.chosen_by is not None:
        rates = "each at its own learning rate, the best on validation"
    yield (
        f"Paired by seed, {plural(tested.sum(), 'comparison')}, uncorrected; {rates}. "
        f"Differences are in points{lower}; *detectable* is the smallest "
        "true difference that so many seeds find at 5% with 80% power, if differences scatter as these do."
    )
    names = [method_name(domain, method) for method in found.method]
    apart = [f"{name} is {verdict}" for name, verdict in zip(names, found.verdict, strict=True)]
    words = found.verdict.where(found.verdict == "not told apart", apart)
    told = _formatted(found, {"difference": "{:+.2f}", "low": "{:+.2f}", "high": "{:+.2f}", "detectable": "{:.2f}"})
    told["p"], told["95% interval"] = found.p.map(p_value), told.low + " to " + told.high
    told = told[["difference", "95% interval", "p", "detectable"]].where(tested, _DASH)
    named = found[["task"]].assign(compared=found.label + " against " + found.against, seeds=found.seeds)
    yield markdown(named.join(told).assign(**{"": words.where(tested, "needs 2 seeds that both have")}))


def spread_table(section: Section) -> Iterator[str]:
    """Of the final alphas over the balanced layers."""
    found, base = spreads(section), method_name(section.domain, section.domain.style.baseline)
    if found.empty:
        return
    yield (
        "How far apart the balanced layers' alphas ended: the largest minus the smallest, and their standard "
        f"deviation over the layers; means over the seeds. Then how much larger the deviation is than {base}'s, with "
        "the 95% interval of a paired t test; and the same over the larger layers alone, of more eigenvalues than the "
        "median layer: alphas of few eigenvalues scatter most."
    )
    told = _formatted(found, dict.fromkeys(("largest - smallest", "deviation"), "{:.3f}"))
    minus = {name: found[name].map(_difference) for name in ("minus", "in larger layers")}
    yield markdown(told.assign(**minus).rename(columns={"minus": f"minus {base}'s"}))


def agreement_table(section: Section) -> Iterator[str]:
    """Of the final alphas with published ones."""
    found = agreements(section)
    if found.empty:
        return
    yield (
        "Final alphas beside the published, layer by layer, all layers: means over the seeds, ours minus the published; "
        "and the largest minus the smallest of the balanced layers' means."
    )
    forms = {"mean difference": "{:+.3f}", "mean size": "{:.3f}", "largest": "{:+.2f}"}
    told = _formatted(found, forms | dict.fromkeys(("ours", "published"), "{:.2f}"))
    yield markdown(told.assign(largest=told.largest + " (" + told["of"] + ")").drop(columns="of"))


def plural(count: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _minus_published(results: pd.Series, figure: Published) -> str:
    if results.empty:
        return _DASH
    p = p_of_equal_means(results.to_numpy(), figure.mean, figure.deviation, figure.seeds)
    return f"{results.mean() - figure.mean:+.2f}" + ("" if p is None else f" (p {p_value(p)})")


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None or pd.isna(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def _difference(each: Paired | None) -> str:
    return _DASH if each is None else f"{each.difference:+.3f} ({each.low:+.3f} to {each.high:+.3f})"


def p_value(p: float) -> str:
    """Three digits, or that it is below them."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _formatted(table: pd.DataFrame, forms: Mapping[str, str]) -> pd.DataFrame:
    return table.assign(**{name: table[name].map(form.format) for name, form in forms.items()})


def markdown(table: pd.DataFrame) -> str:
    """A table whose cells are written as they are."""
    return table.to_markdown(index=False, disable_numparse=True)
