"""The page of a report: whole, safe whatever names stand in it, and at work in a browser."""

import dataclasses
import html.parser
import math
import re
import shutil
import time

import numpy as np
import pytest

import tb_optax
from tb_optax._balance.fits import PowerLaw
from tb_optax._report.page import page
from tb_optax._report.text import labels_of_layers

_VOID = {"meta", "input", "br", "wbr"}
_HOSTILE = "</title></script><script>alert('owned')</script><img src=x onerror=alert(1)>\x1b[31m\u202e&amp;\"'"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")


class _Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles; every tag is closed in its order."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(document)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data + "\n"


def _params(seed=0, layers=9):
    random = np.random.default_rng(seed)
    kernel = lambda: (random.standard_normal((64, 80)) * np.exp(random.standard_normal((64, 1)))).astype(np.float32)
    return {f"layer{number}": {"kernel": kernel()} for number in range(layers)} | {
        "head": {"kernel": np.ones((64, 10), np.float32)}
    }


@pytest.fixture(scope="module")
def reports():
    """Of three steps of a run."""
    return [
        dataclasses.replace(tb_optax.report(_params(seed)), name=f"runs/{'long' * 20}/step_{100 * seed}/params")
        for seed in (1, 2, 3)
    ]


def _layer(name, eigenvalues, alpha=2.0):
    eigenvalues = np.asarray(eigenvalues, np.float32)
    laws = {"median": PowerLaw(alpha=alpha, ks_distance=0.1, xmin=np.median(eigenvalues))}
    return tb_optax.LayerRecord(name, f"{name}/kernel", (64, 64), 1, laws, eigenvalues, 1.0)


def _report(*records, name="model.safetensors", left_out=None):
    return tb_optax.Report(name, "safetensors", records, ("median",), left_out or {})


@pytest.mark.parametrize("several", [1, 2, 3])
def test_it_is_one_whole_document_that_names_no_address(reports, several):
    document = page(reports[:several])
    parsed = _Parsed(document)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", document)
    loading = [
        tag for tag, own in parsed.tags if {"src", "data", "action", "srcset"} & set(own) or tag in ("link", "iframe")
    ]
    assert not loading
    (policy,) = (own["content"] for _, own in parsed.tags if own.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("several", [1, 2, 3])
def test_every_layer_has_its_row_its_mark_and_its_spectrum(reports, several):
    parsed = _Parsed(page(reports[:several]))
    places = [own["data-place"] for _, own in parsed.tags if "data-place" in own]
    assert places == [str(place) for place in range(9)]
    assert [own["data-row"] for _, own in parsed.tags if "data-row" in own] == places
    links = {own["href"] for tag, own in parsed.tags if tag == "a"}
    assert links == {f"#{own['id']}" for _, own in parsed.tags if own.get("id", "").startswith("layer-")}
    assert len(links) == 9
    assert sum(own.get("class") == "spectrum" for _, own in parsed.tags) == 9
    assert "head/kernel" in parsed.text and "10 eigenvalues" in parsed.text


def test_the_layers_shown_first_have_the_largest_alpha_for_their_shape(reports):
    document = page(reports[:1])
    first = document.split("relative to noise")[1].split("</section>")[0]
    shown = re.findall(r'id="layer-(\d+)"', first)
    ratios = [record.alpha / record.noise.alpha for record in reports[0].records]
    assert shown == [str(place) for place in np.argsort(ratios)[::-1][:6]]
    assert document.count('<path class="noise"') == 9 and "noise of the layer" in document


@pytest.mark.parametrize("shape", [(64, 64), (64, 512)])
def test_the_edge_of_noise_is_drawn_wherever_the_legend_has_it(shape):
    """Also for equal singular values, whose spectrum ends far below it."""
    kernel, _ = np.linalg.qr(np.random.default_rng(0).standard_normal(shape[::-1]))
    document = page([tb_optax.report({"dense": {"kernel": kernel.T.astype(np.float32)}})])
    assert document.count("dots noise") == document.count('class="mark noise"') == 1


def test_the_numbers_in_it_are_the_reports(reports):
    document = page(reports[:1])
    rows = re.findall(r'<tr data-place="(\d+)">(.*?)</tr>', document)
    for (place, cells), record in zip(rows, reports[0].records, strict=True):
        shown = [float(value) for value in re.findall(r'data-value="([^"]+)"', cells)]
        row = record.row()
        expected = [value for key, value in row.items() if not isinstance(value, str) and key != "matrices"]
        np.testing.assert_allclose(shown, expected, rtol=1e-5, err_msg=place)


def test_of_two_checkpoints_it_tells_the_change_and_outlines_the_first_spectrum(reports):
    document = page(reports[:2])
    one, two = (report.record("layer3") for report in reports[:2])
    (cells,) = re.findall(r'<tr data-place="3">(.*?)</tr>', document)
    shown = [float(value) for value in re.findall(r'data-value="([^"]+)"', cells)]
    np.testing.assert_allclose(shown[:3], [one.alpha, two.alpha, two.alpha - one.alpha], rtol=1e-3)
    assert document.count('class="before" d=') == 9
    assert "<h1>step_100 · step_200</h1>" in document


def test_of_more_checkpoints_it_draws_each_layers_course(reports):
    document = page(reports)
    assert document.count('class="course"') == 9
    assert "Alpha over the checkpoints" in document


def test_names_are_text_whatever_they_hold(reports):
    calm = {tag for several in (1, 2, 3) for tag, _ in _Parsed(page(reports[:several])).tags}
    records = [_layer(_HOSTILE + str(number), np.linspace(1, 2, 64)) for number in range(8)]
    one = _report(*records, name=_HOSTILE, left_out={_HOSTILE: _HOSTILE})
    two = dataclasses.replace(one, name=_HOSTILE + "/2")
    three = dataclasses.replace(one, name=_HOSTILE + "/3")
    for several in ([one], [one, two], [one, two, three]):
        document = page(several)
        parsed = _Parsed(document)
        assert {tag for tag, _ in parsed.tags} <= calm | {"wbr"}
        assert not any(name.startswith("on") for _, own in parsed.tags for name in own)
        assert sum(tag == "script" for tag, _ in parsed.tags) == 1
        assert "\x1b" not in document and "\u202e" not in document
        assert "alert('owned')" in parsed.text  # As text, it is there.


def test_a_very_long_name_keeps_both_ends():
    document = page([_report(_layer("start" + "x" * 100_000 + "end", np.linspace(1, 2, 64)))])
    assert len(document) < 50_000
    assert re.search("startx+…x+end", document)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.full(64, np.nan),
        np.zeros(64),
        np.ones(64),
        np.concatenate([np.zeros(63), [1e-30]]),
        np.geomspace(1e-38, 1e38, 64),
        [1.0],
    ],
    ids=["nan", "zeros", "a spike", "rank one", "all magnitudes", "one eigenvalue"],
)
@pytest.mark.parametrize("alpha", [math.nan, 2.0, 1e6])
def test_strange_spectra_are_drawn_or_told(eigenvalues, alpha):
    records = [_layer("layer0", eigenvalues, alpha), _layer("layer1", np.linspace(1, 2, 64))]
    for several in ([_report(records[0])], [_report(*records)], [_report(*records, name=name) for name in "ab"]):
        document = page(several)
        _Parsed(document)
        assert not re.search(r'd="[^"]*(nan|inf)', document)
    if not np.isfinite(eigenvalues).all():
        assert "The weights of layer0 hold NaN" in document


def test_a_layer_that_only_one_checkpoint_has_is_told_and_others_too(reports):
    fewer = dataclasses.replace(reports[1], records=reports[1].records[:-1])
    for several in ([reports[0], fewer], [fewer, reports[0]], [fewer, reports[0], fewer]):
        document = page(several)
        _Parsed(document)
        assert document.count("<tr data-place=") == 9


@pytest.mark.parametrize("several", [1, 2, 40])
def test_a_large_network_makes_no_large_page(several):
    random = np.random.default_rng(0)
    eigenvalues = np.sort(random.pareto(1.5, 4096)) + 1
    records = [_layer(f"model.layers.{number}.self_attn.q_proj", eigenvalues, 2 + number % 7 / 10) for number in range(224)]
    started = time.process_time()
    document = page([_report(*records, name=f"step_{number}") for number in range(several)])
    assert len(document) < 1_500_000
    assert time.process_time() - started < 60  # Not a speed, but nothing that grows with the square.


NAMES = [f"model.encoder.layer.{n}.{part}.dense.weighted" for n in range(12) for part in ("self_attention", "up", "down")]


def test_short_names_leave_out_what_most_share_and_still_differ():
    names = labels_of_layers([*NAMES, "model.head"], 16)
    assert names[0] == "0.self_attention" and names[-1] == "head"
    assert len(set(names)) == len(NAMES) + 1
    assert labels_of_layers(["a/b", "a/c"], 30) == ["b", "c"]
    assert labels_of_layers(["a", "a/b"], 30) == ["a", "a.b"]
    assert labels_of_layers(["x" * 50], 9) == ["xxxx…xxxx"]
    groups = (("angle_layers", "two_body_bond"), ("atom_conv_layers", "two_body_atom"))
    blocks = [f"{group}.{n}.{part}.mlp_core.layers.{m}" for group, part in groups for n in range(3) for m in (0, 3)]
    names = labels_of_layers([*blocks, "mlp.layers.0"], 28)
    assert len(set(names)) == 13 and max(map(len, names)) <= 28
    assert names[0] == "angle_layers.0.two_b…_bond.0"


def test_many_layers_have_a_line_for_each_kind(reports):
    records = [_layer(name, np.linspace(1, 2, 64), 2 + place / 100) for place, name in enumerate(NAMES * 2)]
    records = [dataclasses.replace(record, layer=f"{place % 2}.{record.layer}") for place, record in enumerate(records)]
    (lines,) = re.findall(r'<section id="kinds">(.*?)</section>', page([_report(*records)]), re.S)
    cells = [re.findall(r">([^<]*)</td>", line) for line in re.findall("<tr data-kind.*?</tr>", lines)]
    assert [int(line[0]) for line in cells] == [24, 24, 24]
    assert 'id="kinds"' not in page(reports[:1])


def test_a_dash_and_a_mark_have_their_reason():
    document = page([_report(_layer("layer0", np.zeros(64), math.nan), _layer("layer1", np.linspace(1, 2, 64)))])
    assert document.count('title="all eigenvalues are zero"') == 6
    weights = {
        "zero": np.zeros((64, 64)),
        "broken": np.full((64, 64), np.nan),
        "large": 1e30 * _params()["layer0"]["kernel"],
    }
    for options in ({}, dict(windows=tb_optax.Windows(32)), dict(fits=(tb_optax.fits.goodness_of_fit,))):
        report = tb_optax.report({name: {"kernel": each.astype(np.float32)} for name, each in weights.items()}, **options)
        layers = page([report]).split('id="layers"')[1]
        assert layers.count(">–</td>") + 2 <= layers.count('title="', 0, layers.index("</table>")) > 20
        assert '<td data-value="NaN">' not in layers
    poor = _layer("layer0", np.r_[np.linspace(1e-3, 1.1e-3, 33), np.linspace(2, 3, 31)])
    assert re.search(r'title="the threshold lies in a gap[^"]*">poor fit<', page([_report(poor)]))


# In a browser.


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser is installed; one of: {', '.join(_BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=_QUIET)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, reports, tmp_path):
    """Opens the page of some reports; at the end, nothing was said on the console and no request left."""
    said, requests, contexts = [], [], []

    def open_page(several=1, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: requests.append(request.url))
        (tmp_path / "report.html").write_text(page(reports[:several]), "utf-8")
        shown.goto((tmp_path / "report.html").as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert not said
    assert set(requests) == {(tmp_path / "report.html").as_uri()}


def _column(shown, column):
    cells = shown.locator(f"#layers tbody tr:visible > :nth-child({column})").all_text_contents()
    return [float(cell.replace(",", "").replace("−", "-")) if column > 2 else cell for cell in cells]


@pytest.mark.slow
def test_a_heading_sorts_up_then_down_and_the_first_column_gives_the_first_order(opened):
    shown = opened()
    first = _column(shown, 1)
    head = shown.locator("#layers thead th")
    alpha = head.all_text_contents().index("alpha") + 1
    head.nth(alpha - 1).locator("button").click()
    up = _column(shown, alpha)
    assert up == sorted(up) and head.nth(alpha - 1).get_attribute("aria-sort") == "ascending"
    head.nth(alpha - 1).locator("button").click()
    assert _column(shown, alpha) == up[::-1]
    head.nth(0).locator("button").press("Enter")
    assert _column(shown, 1) == first
    assert head.nth(alpha - 1).get_attribute("aria-sort") is None


@pytest.mark.slow
def test_a_card_says_where_its_table_goes_on(opened):
    shown = opened(viewport={"width": 700, "height": 800})
    is_marked = "document.querySelector('#layers .frame').classList.contains('more')"
    assert shown.evaluate(is_marked)
    shown.evaluate("document.querySelector('#layers .scroll').scrollLeft = 1e6")
    shown.wait_for_function(f"!{is_marked}")
    assert not opened(viewport={"width": 1400, "height": 800}).evaluate("document.querySelector('.summary .more')")


@pytest.mark.slow
def test_the_dialog_has_a_legend(opened):
    shown = opened(2)
    shown.get_by_role("link", name="layer4", exact=True).click()
    words = shown.locator("dialog .legend").text_content()
    assert "eigenvalues in step_200" in words and "in step_100" in words and "fitted tail, median" in words


@pytest.mark.slow
def test_a_name_filters(opened):
    shown = opened()
    shown.get_by_role("searchbox").fill("AYER7")
    assert _column(shown, 1) == ["layer7"]
    shown.get_by_role("searchbox").fill("")
    assert len(_column(shown, 1)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("several", [1, 2, 3])
def test_a_click_on_a_row_or_on_a_mark_opens_the_layers_spectrum(opened, several):
    shown = opened(several)
    dialog = shown.locator("dialog")
    assert not dialog.is_visible()
    shown.get_by_role("link", name="layer4", exact=True).click()
    assert dialog.locator("h3").text_content() == "layer4" and dialog.locator("svg.spectrum").is_visible()
    shown.keyboard.press("Escape")
    assert not dialog.is_visible()
    shown.locator('[data-row="6"] > :last-child').dispatch_event("click")
    assert dialog.locator("h3").text_content() == "layer6"
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


@pytest.mark.slow
def test_a_row_and_its_mark_are_one_thing(opened):
    shown = opened()
    shown.locator('#layers tr[data-place="2"]').hover()
    assert shown.locator(".told").get_attribute("data-row") == "2"


@pytest.mark.slow
def test_it_is_readable_without_scripts(opened):
    shown = opened(java_script_enabled=False)
    assert len(_column(shown, 1)) == 9
    assert shown.locator("svg.spectrum:visible").count() == 6  # Of the worst layers.
    assert not shown.get_by_role("searchbox").is_visible()
    shown.locator("details.card summary").first.click()
    assert shown.locator("svg.spectrum:visible").count() == 7


@pytest.mark.slow
@pytest.mark.parametrize("several", [1, 2, 3])
def test_on_a_phone_only_tables_and_drawings_scroll_sideways(opened, several):
    shown = opened(several, viewport={"width": 360, "height": 740})
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    shown.get_by_role("link", name="layer4", exact=True).click()
    box = shown.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


@pytest.mark.slow
def test_text_is_readable_on_its_ground_in_light_and_in_dark(opened):
    contrast = """() => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const light = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
        const [red, green, blue] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      };
      const ground = light(getComputedStyle(document.querySelector(".card")).backgroundColor);
      const colours = ["p", "h3", "figcaption", "tbody th a", "td", "thead th"].map(
        (name) => light(getComputedStyle(document.querySelector(name)).color));
      return [ground, Math.min(...colours.map((own) => (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05)))];
    }"""
    light, dark = (opened(color_scheme=scheme).evaluate(contrast) for scheme in ("light", "dark"))
    assert light[0] > 0.8 and dark[0] < 0.1
    assert light[1] > 4.5 and dark[1] > 4.5  # What WCAG 2.2 asks of text (AA).
