"""The report in a real browser: reading, sorting, searching, themes, printing, hostile names."""

import csv
import re
from urllib.parse import quote

import pytest

import kn_lens as kn
from kn_lens.reports.report import write_report
from tests import made_run
from tests.browser import browsing, opened
from tests.synthetic_run import write_run

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
ATTACKS = (
    "javascript:alert(1)",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)><b>bold</b> &lt;",
    "<!--<script> {{7*7}} ${alert(4)} %{x} '\"",
)


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("report") / "run", n_relations=3, n_facts=40))


@pytest.fixture(scope="module")
def read_page(browser, report):
    """The report on a page that the tests of the module share."""
    with opened(browser, report, viewport=DESK) as page:
        yield page


RESET = """async () => {
  document.body.tabIndex = -1;
  document.body.focus(); // the next Tab goes to the first link
  document.body.removeAttribute("tabindex");
  delete root.dataset.theme;
  updateThemeButton();
  for (const table of [facts.factTable, facts.neuronTable]) {
    table.sortedColumn = null;
    table.find("");
  }
  document.querySelectorAll("details").forEach((one) => (one.open = false));
  history.replaceState(null, "", location.pathname);
  await showAddress();
  scrollTo(0, 0);
}"""


@pytest.fixture
def page(read_page):
    """The page of the module at the overview, as a reader meets it."""
    read_page.emulate_media(color_scheme="light")
    read_page.evaluate(RESET)
    assert read_page.is_visible("#overview") and read_page.is_hidden("#page")
    return read_page


def go(page, address):
    """Follow a link within the page."""
    page.evaluate("address => { location.hash = address }", address)


def rows(page, table):
    return page.locator(f"#{table}-table tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )


def test_a_table_is_sorted_by_its_buttons_and_paged(page):
    assert len(rows(page, "facts")) == 50
    assert "1 to 50 of 120 facts" in page.inner_text("#facts-table .pages")
    head = page.locator("#facts-table th", has_text="P suppressed").first
    for expected in ("descending", "ascending"):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == expected
        values = [float(row[5]) for row in rows(page, "facts")]
        assert values == sorted(values, reverse=expected == "descending")
        extreme = {"descending": max, "ascending": min}[expected]
        assert values[0] == round(extreme(page.evaluate("facts.rows.map(fact => fact.off)")), 3)
    first = rows(page, "facts")[0]
    page.locator("#facts-table .pages button", has_text="Last").click()
    assert len(rows(page, "facts")) == 20 and "101 to 120 of 120" in page.inner_text("#facts-table .pages")
    page.locator("#facts-table .pages button", has_text="First").click()
    assert rows(page, "facts")[0] == first


def test_a_fact_is_found_opened_and_left_with_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#facts-table input").focus()
    page.keyboard.type("P2 subject 33")
    assert [row[:3] for row in rows(page, "facts")] == [["subject 33", "P2", "object 33"]]
    page.locator("#facts-table td a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#page:not([hidden])")
    assert page.inner_text("h1:visible") == "subject 33: object 33" and page.title() == "subject 33: object 33"
    assert page.evaluate("document.activeElement.id") == "page-title"
    fact = page.evaluate("facts.rows.find(fact => fact.relation === 'P2' && fact.subject === 'subject 33')")
    details = page.evaluate(f"facts.details({page.evaluate('facts.numberOf.get(' + repr(fact['key']) + ')')})")
    label = page.get_attribute("[data-figure=predictions]", "aria-label")
    mean = sum(details["predictions"]["after"]) / 5
    assert "in 5 prompts" in label and f"{mean:.3f} with the neurons suppressed" in label
    shown = page.locator("#fact-predictions tbody tr")
    assert shown.count() == len(details["predictions"]["text"]) == 5
    assert shown.first.locator("td").nth(1).inner_text() == details["predictions"]["text"][0]
    assert page.locator("#fact-neurons tbody tr").count() == fact["n_neurons"]
    assert page.locator("#fact-readouts tbody tr").count() == fact["n_neurons"]
    page.go_back()
    page.wait_for_selector("#overview:not([hidden])")


def test_a_link_to_a_fact_opens_it_and_a_wrong_one_says_so(browser, report):
    with opened(browser, report, "#fact=" + quote("P1/subject 0/object 0", safe="")) as page:
        page.wait_for_selector("#page-title")
        assert page.inner_text("#page-title") == "subject 0: object 0"
    with opened(browser, report, "#fact=P9%2Fnobody") as page:
        assert "There is no fact P9/nobody" in page.inner_text("#message")
        assert page.is_visible("#summary")


def test_a_fact_has_its_texts_and_what_its_neurons_promote_beside_the_effects(page):
    fragment = "#fact=" + quote("P2/subject 3/object 3", safe="")
    go(page, fragment)
    page.wait_for_selector("#page:not([hidden])")
    details = page.evaluate("facts.details(facts.numberOf.get(readAddress().value))")
    cells = page.locator("#fact-effects tbody tr").first.locator("td").all_inner_texts()
    effects = {name: column[0] for name, column in details["effects"].items()}
    change = 100 * (effects["suppressed"] / effects["before"] - 1)
    assert cells[:2] == ["its knowledge neurons", "this fact"]
    assert cells[3] == f"{effects['suppressed']:.3f} (\N{MINUS SIGN}{-change:.0f}%)"
    tops = page.locator("#fact-texts table").first.locator("tbody td.long").all_inner_texts()
    assert tops == details["texts"]["text"][:3]
    effects_box, readouts_box = (page.locator(f"#fact-{name}").bounding_box() for name in ("effects", "readouts"))
    assert page.evaluate(CUT_OFF) == []
    assert effects_box["y"] == readouts_box["y"] and effects_box["x"] < readouts_box["x"]


def test_escape_leads_from_a_fact_back_to_it_in_the_table(page):
    fragment = "#fact=" + quote("P3/subject 7/object 7", safe="")
    go(page, fragment)
    page.wait_for_selector("#page:not([hidden])")
    page.keyboard.press("Escape")
    assert page.is_visible("#overview") and page.is_hidden("#page") and page.url.endswith("#facts")
    page.wait_for_function(f"document.activeElement.hash === {fragment!r}")
    assert "51 to 100 of 120 facts" in page.inner_text("#facts-table .pages")  # the page with the fact
    page.keyboard.press("Escape")  # elsewhere it does nothing
    assert page.is_visible("#overview") and page.url.endswith("#facts")


def test_no_tick_gives_zero_a_sign(page):
    page.evaluate("drawAllFigures()")
    ticks = page.locator(".xtick text, .ytick text").all_text_contents()
    assert {"0%", "+50%"} <= set(ticks) and not {"+0%", "\N{MINUS SIGN}0%", "-0%"} & set(ticks)


def test_a_neuron_leads_to_the_facts_that_have_it(page):
    name, n_facts = rows(page, "neurons")[0][:2]
    page.locator("#neurons-table td a").first.click()
    page.wait_for_function(f"element('facts-table').querySelectorAll('tbody tr').length === {n_facts}")
    assert all(name in row[-1].split() or "+" in row[-1] for row in rows(page, "facts"))


def test_figures_are_drawn_with_the_numbers_of_their_tables(page):
    page.evaluate("drawAllFigures()")
    assert page.locator(".plot .main-svg").count() >= 2 * page.locator("figure").count() > 0
    assert page.locator("figure details table").count() == page.locator("figure").count()
    drawn = page.evaluate(
        "document.querySelector('[data-figure=effects_by_relation]').data.flatMap(trace => trace.x).sort()"
    )
    shares = page.evaluate("document.querySelector('[data-figure=layer_distribution]').data[0].y")
    assert len(drawn) == 2 * 2 * 3 and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("preferred", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(page, preferred):
    other = {"light": "dark", "dark": "light"}[preferred]
    page.emulate_media(color_scheme=preferred)
    page.evaluate("drawAllFigures()")

    def seen():
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return back, page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout.paper_bgcolor")

    before = seen()
    page.click("#theme")
    after = seen()
    dark, light = "rgb(20, 24, 29)", "rgb(255, 255, 255)"
    assert before == ((dark, dark) if preferred == "dark" else (light, light))
    assert after == ((light, light) if preferred == "dark" else (dark, dark))
    assert other in page.get_attribute("html", "data-theme")


CONTRASTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = numbers(color).map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((numbers(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest("script, :disabled")) continue;
    const inFigure = one.closest(".js-plotly-plot");
    if (inFigure && !one.closest("text")) continue;
    const color = inFigure ? getComputedStyle(one.closest("text")).fill : getComputedStyle(one).color;
    const [a, b] = [light(color), light(inFigure ? inFigure._fullLayout.paper_bgcolor : back(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, one.tagName, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


CUT_OFF = """() => {
  const tables = [...document.querySelectorAll(".scroll, pre, nav")].filter((box) => box.scrollWidth > box.clientWidth);
  const labels = [...document.querySelectorAll(".plot text")].filter((label) => {
    const { left, right, width } = label.getBoundingClientRect();
    return width && (left < 0 || right > innerWidth);
  });
  return [...tables, ...labels].map((box) => box.textContent.slice(0, 80));
}"""


@pytest.mark.parametrize("fragment", ["", "#fact=" + quote("P1/subject 0/object 0", safe="")])
def test_all_text_stands_out_and_a_phone_shows_it_without_scrolling_sideways(browser, report, fragment):
    with opened(browser, report, fragment, color_scheme="dark", viewport=PHONE) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        for scheme, back in (("dark", "rgb(20, 24, 29)"), ("light", "rgb(255, 255, 255)")):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == back
            page.evaluate("drawAllFigures()")
            found = page.evaluate(CONTRASTS)
            assert len(found) > 50 and found[0][0] >= 4.5, found[:3]
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            assert page.evaluate(CUT_OFF) == []


def test_compared_runs_fit_a_phone_with_named_values(browser, tmp_path):
    facts = made_run.made_facts(0)
    runs = [made_run.write_run(tmp_path / "a run", facts), made_run.write_run(tmp_path / "another run", facts)]
    with opened(browser, kn.write_comparison(kn.compare_runs(runs), tmp_path / "page.html"), viewport=PHONE) as page:
        page.evaluate("drawAllFigures()")
        assert page.locator(".js-plotly-plot").count() == 2
        titles = page.locator("#statistics td").evaluate_all("cells => cells.map(cell => cell.dataset.title)")
        assert titles[:4] == ["statistic", "a run", "a run, control", "another run"] and None not in titles
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.evaluate(CUT_OFF) == []


def test_without_scripts_there_are_summary_tables_and_method(browser, report):
    with opened(browser, report, java_script_enabled=False) as page:
        assert (
            page.is_visible(".card") and page.is_visible("#method") and "Without JavaScript" in page.inner_text("main")
        )
        page.click("#figure-effects summary")
        assert page.locator("#figure-effects tbody tr").count() == 12 and not page.is_visible("#facts")


def test_printing_draws_all_figures_on_white_and_leaves_tables_closed(browser, report):
    with opened(browser, report, color_scheme="dark", viewport=DESK) as page:
        page.click("#figure-effects summary")
        plots = "[...document.querySelectorAll('.plot')]"
        colors = f"{plots}.map(plot => plot._fullLayout?.paper_bgcolor)"
        page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {colors} }})")
        assert page.pdf().startswith(b"%PDF")
        assert page.evaluate("printed") == ["rgb(255, 255, 255)"] * page.locator("figure").count()
        assert page.locator("details[open]").count() == 1  # the one that was opened
        drawn = page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout")
        assert drawn["paper_bgcolor"] == "rgb(20, 24, 29)" and drawn["width"] > 1000  # as before


SECTIONS = (("figures",), ("facts",), ("neurons",), ("summary", "tables", "method", "provenance"))


def pages(page):
    """Return the number of pages that are printed."""
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4", prefer_css_page_size=True)))


def test_no_section_takes_more_than_three_printed_pages(browser, tmp_path):
    run = write_run(tmp_path / "run", n_relations=30, n_facts=3, n_prompts=30)
    with opened(browser, write_report(run)) as page:
        hide = page.add_style_tag(content="main {}")
        for sections in SECTIONS:
            others = "".join(f":not(#{section})" for section in sections)
            rule = f"""@media print {{
              #overview > section {{ break-before: page }}
              #overview > section{others} {{ display: none }}
            }}"""
            hide.evaluate("(style, rule) => { style.textContent = rule }", rule)
            # Each begins a page of its own: one of four pages would make seven of them.
            assert len(sections) <= pages(page) <= 3 + len(sections) - 1, sections
        assert "1 to 50 of 90 facts" in page.inner_text("#facts-table .pages")  # on the screen, as before
        page.evaluate("location.hash = '#fact=P1%2Fsubject%200%2Fobject%200'")
        page.wait_for_selector("#page:not([hidden])")
        assert 1 <= pages(page) <= 2 * 3


def test_tables_are_saved_as_csv(page, tmp_path):
    page.fill("#facts-table input", "P2 subject 33")
    with page.expect_download() as download:
        page.click("#facts-table button:has-text('CSV')")
    download.value.save_as(tmp_path / "facts.csv")
    with (tmp_path / "facts.csv").open(newline="") as file:
        header, *found = csv.reader(file)
    assert header[:3] == ["Fact", "Relation", "Answer"]
    assert [row[:3] for row in found] == [["subject 33", "P2", "object 33"]]


@pytest.fixture(scope="module")
def attacked(browser, tmp_path_factory):
    """A report whose relation, facts, prompts and tokens of each number have an attack in all their names."""

    def name(text):
        return f"{ATTACKS[int(re.search('[0-9]+', text + ' 0')[0]) % len(ATTACKS)]} {text}"

    run = write_run(tmp_path_factory.mktemp("attacked") / "run", n_relations=4, n_facts=4, name=name)
    with opened(browser, write_report(run), viewport=DESK) as page:
        yield page


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=ATTACKS)
def test_names_that_look_like_markup_stay_text(attacked, number):
    attack, relation = ATTACKS[number], f"{ATTACKS[number]} P{number or len(ATTACKS)}"
    page = attacked
    page.evaluate(RESET)
    page.evaluate("drawAllFigures()")
    labels = page.locator("#figure-effects_by_relation text").all_text_contents()
    assert relation in labels
    page.fill("#facts-table input", relation)
    expected = [[f"{one} subject {n}", relation, f"{one} object {n}"] for n, one in enumerate(ATTACKS)]
    assert [row[:3] for row in rows(page, "facts")] == expected
    page.locator("#facts-table td a", has_text=f"subject {number}").last.click()
    page.wait_for_selector("#page:not([hidden])")
    page.evaluate("drawAllFigures()")
    assert page.inner_text("#page-title") == f"{attack} subject {number}: {attack} object {number}"
    assert attack in page.inner_text("#fact-texts") and attack in page.inner_text("#fact-predictions")
    assert page.locator("main img, main b, main a[href^=http], main a[href^=javascript]").count() == 0
    assert page.evaluate("document.scripts.length") == 6 + 2  # the library, ours, and the data
