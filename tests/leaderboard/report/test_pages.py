"""What pages say: the numbers of the boards, negative results and failures included, and every text as text."""

from __future__ import annotations

import json
import re

import pytest
from lxml import html

from kdbench.leaderboard.boards import Selection
from kdbench.leaderboard.report import context, data, names
from kdbench.leaderboard.report.pages import FINDINGS, Site, summary
from kdbench.registry import Registry
from kdbench.store import duck
from tests.helpers import site
from tests.helpers.claims import compare, ran, write_paper
from tests.helpers.outcomes import grid, make_spec, put
from tests.helpers.suites import registry_of

KB = 1000
LARGEST_PAGE = 300 * KB


def made(results, registry=None, sections=None, **selection):
    """Texts of the pages by path."""
    known = Registry() if registry is None else registry
    material = duck.query(results, lambda con: data.load(con, known, Selection(**selection)))
    found = Site(material, known, results, sections).pages()
    return {page.path: context.render(page.template, page.context) for page in found}


def document(text):
    return html.document_fromstring(text)


def said(element):
    return " ".join(element.text_content().split())


def classed(page, name):
    """Elements of a class."""
    return page.xpath(f"//*[contains(concat(' ', @class, ' '), ' {name} ')]")


def rows(text, after=""):
    """Rows of the first table that sorts (after the heading with an id), as mappings of its headers to texts."""
    page = document(text)
    found = page.xpath(f"//*[@id='{after}']/following::table[1]")[0] if after else classed(page, "sortable")[0]
    heads = [said(head) for head in found.xpath("./thead//th")]
    return [
        dict(zip(heads, [said(cell) for cell in row.xpath("./th|./td")], strict=True))
        for row in found.xpath("./tbody/tr")
    ]


SPEC = make_spec() | {"floor": "no_kd", "ceiling": "teacher"}
SPEC["headline"] = SPEC["headline"] | {"unit": "%"}
SCORES = {
    "no_kd": [0.50, 0.51, 0.49],
    "teacher": [0.90, 0.91, 0.89],
    "good": [0.80, 0.82, 0.78],
    "bad": [0.40, 0.41, 0.39],
    "broken": [0.95, None, None],
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    curve = [{"step": step, "loss": 1.0 / (1 + step)} for step in range(5)]
    put(results, grid(SCORES, spec=SPEC), curve=curve, log="the end of the log\n")
    return made(results)


TASK = "tasks/vision.toy.cpu.html"


def test_there_is_a_page_for_everything_and_links_lead_to_them(pages):
    jobs = [path for path in pages if path.startswith("jobs/")]
    assert len(jobs) == 2
    expected = {"index.html", "claims.html", "compare.html", "tracks/vision.html", TASK, *jobs}
    assert set(pages) == expected | {f"methods/vision.{slug}.html" for slug in SCORES}
    for path, text in pages.items():
        for link in document(text).xpath("//a/@href"):
            place, _, anchor = link.partition("#")
            target = "/".join((path.rpartition("/")[0], place)).removeprefix("/") if place else path
            target = re.sub(r"[^/]+/\.\./", "", target)
            assert target in pages, (path, link)
            assert not anchor or document(pages[target]).xpath(f"//*[@id='{anchor}']"), (path, link)


def test_a_task_has_the_numbers_of_its_board(pages):
    found = {row["method"]: row for row in rows(pages[TASK])}
    assert list(found) == ["teacher", "good", "no_kd", "bad", "broken"], "who failed is behind all who did not"
    assert found["good"]["score top1 (%)"] == "80.0± 5.0"
    assert found["good"]["gap closed (%)"] == "75.0± 6.2"
    assert found["good"]["rank"] == "2"
    assert found["good"]["train time"] == "2.5 s"
    assert found["bad"]["gap closed (%)"].startswith("-25")
    assert found["broken"]["failed"] == "2 failed"
    assert found["broken"]["seeds"] == "1"
    assert "gap closed: 0 is no_kd, 100 is teacher" in said(document(pages[TASK]))
    orders = [row.xpath("./td[2]/@data-order")[0] for row in document(pages[TASK]).xpath("(//table)[1]/tbody/tr")][:4]
    assert [float(order) for order in orders] == pytest.approx([0.9, 0.8, 0.5, 0.4])


def test_charts_draw_what_the_table_says_and_lead_to_methods(pages):
    page = document(pages[TASK])
    drawn = json.loads(page.xpath("//script[@id='rows']")[0].text)
    assert [row["name"] for row in drawn] == ["teacher", "good", "no_kd", "bad", "broken"]
    assert all(f"tasks/{row['href']}" and row["href"].removeprefix("../") in pages for row in drawn)
    for figure in classed(page, "chart"):
        assert page.xpath(f"//script[@id='{figure.get('data-spec')}']")
        assert page.xpath(f"//script[@id='{figure.get('data-rows')}']")
        assert said(figure)


def test_the_overview_counts_what_is_worse_and_what_failed(pages):
    text = said(document(pages["index.html"]))
    assert "5 methods on 1 tasks, 15 jobs, 2 failed" in text
    (task,) = rows(pages["index.html"])
    assert (task["leader"], task["better than floor"], task["worse than floor"], task["failed jobs"]) == (
        "good",
        "1",
        "1",
        "2",
    )
    standings = rows(pages["tracks/vision.html"], "over-cpu")
    assert {row["method"] for row in standings} == set(SCORES)
    assert next(row for row in standings if row["method"] == "bad")["worse"] == "1"


def test_a_method_has_its_results_failures_and_curves(pages):
    page = pages["methods/vision.broken.html"]
    (row,) = rows(page)
    assert (row["task"], row["failed"]) == ("toy@cpu", "2 failed")
    assert len(document(page).xpath("//h2[@id='failed']/following::table[1]/tbody/tr")) == 2
    curve = json.loads(document(page).xpath("//script[@id='curve-1']")[0].text)
    assert curve[0]["step"] == [0, 1, 2, 3, 4]
    assert "loss on vision/toy@cpu 0.2" in said(document(page))
    assert "commit" in said(document(page))


def test_a_failed_job_shows_its_error_and_the_end_of_its_log(pages):
    page = said(document(next(text for path, text in pages.items() if path.startswith("jobs/"))))
    for part in ("RuntimeError: planted", "File x, line 1", "the end of the log", "broken", "kdbench show"):
        assert part in page


def test_every_page_leads_back_and_can_be_used_with_keys(pages):
    for path, text in pages.items():
        page = document(text)
        first = page.xpath("//body//*[self::a or self::button or self::input or self::select]")[0]
        assert (first.get("class"), first.get("href")) == ("skip", "#main"), path
        assert page.xpath("//main[@id='main']")
        assert len(page.xpath("//h1")) == 1
        assert all(nav.get("aria-label") for nav in page.xpath("//nav"))
        assert page.xpath("//nav//a[contains(@href, 'index.html')]")
        for box in classed(page, "scroll"):
            assert (box.get("tabindex"), box.get("role")) == ("0", "region")
            assert box.get("aria-label")
        assert not page.xpath("//*[starts-with(name(@*), 'on')]")
        assert not page.xpath("//@style")


def test_a_page_asks_for_nothing_outside_of_its_site(pages):
    for text in pages.values():
        page = document(text)
        for place in page.xpath("//script/@src | //link/@href | //img/@src"):
            assert place == "data:," or re.fullmatch(r"(\.\./)?assets/[a-z/]+\.(js|css)", place)
        policy = page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy


def test_extensions_add_sections_to_the_overview(tmp_path):
    put(tmp_path, grid({"kd": [0.5]}))
    page = made(tmp_path, sections={"Notes <b>": "**strong** <script>alert(1)</script>"})["index.html"]
    assert "<h2>Notes &lt;b&gt;</h2>" in page
    assert "<strong>strong</strong> &lt;script&gt;" in page


def test_a_refused_board_shows_the_reasons_and_no_ranking(tmp_path):
    put(tmp_path, grid({"kd": [0.5, 0.6]}, gate=["the teacher <b>knows</b> nothing"]))
    found = made(tmp_path)
    page = document(found[TASK])
    assert not classed(page, "sortable")
    assert "the teacher <b>knows</b> nothing" in said(page)
    (task,) = rows(found["index.html"])
    assert task["leader"] == "refused"
    (row,) = rows(found["methods/vision.kd.html"])
    assert row["rank"] == "refused"


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    write_paper(folder / "methods", "new", compare("new", "old"), compare("new", "old", kind="noninferior", margin=9.0))
    write_paper(folder / "methods", "old", compare("old", "new", note="Old is <i>better</i>."))
    write_paper(folder / "methods", "idle", compare("idle", "idler"))
    write_paper(folder / "methods", "idler")
    registry = registry_of(folder / "methods")
    put(folder / "results", [*ran(registry, "new", [0.6, 0.7, 0.8]), *ran(registry, "old", [0.1, 0.2, 0.31])])
    return made(folder / "results", registry, track="toy")


def test_claims_have_a_verdict_each_and_one_for_the_paper(claims):
    page = document(claims["claims.html"])
    papers = {row["method"]: row for row in rows(claims["claims.html"])}
    assert {name: row["verdict"] for name, row in papers.items()} == {
        "toy/new": "not reproduced",
        "toy/old": "reproduced",
    }
    assert papers["toy/new"]["checked by"] == "kdbench claims --run toy/new"
    assert [said(item) for item in page.xpath("//ul[@class='tally']/li")] == [
        "1 reproduced",
        "1 not reproduced",
        "0 undecided",
    ]
    assert "Of 1 paper with claims nothing ran here" in said(page)
    findings = rows(claims["claims.html"], "findings")
    assert [row["verdict"] for row in findings] == ["not reproduced", "reproduced", "reproduced"]
    assert findings[0]["claim"] == "1: new < old"
    assert findings[0]["seeds"] == "3"
    assert " to " in findings[0]["95 % interval"]


def test_a_verdict_is_a_word_with_a_colour(claims):
    words = {"reproduced": "yes", "not reproduced": "no", "undecided": "open"}
    marks = [mark for text in claims.values() for mark in classed(document(text), "verdict")]
    assert {said(mark) for mark in marks} >= {"reproduced", "not reproduced"}
    assert all(mark.get("class") == f"verdict {words[said(mark)]}" for mark in marks)


def test_a_board_and_a_method_say_what_became_of_claims(claims):
    found = {row["method"]: row["claims"] for row in rows(claims["tasks/toy.line.cpu.html"])}
    assert found == {"new": "not reproduced", "old": "reproduced"}
    page = claims["methods/toy.old.html"]
    assert "Old is &lt;i&gt;better&lt;/i&gt;." in page
    assert rows(page, "claims")[0]["verdict"] == "reproduced"
    assert "kdbench claims --run toy/old" in page


# --- attacks, and many methods ----------------------------------------------------------------------------------------


def test_no_text_of_results_becomes_html(tmp_path):
    site.hostile(tmp_path)
    found = made(tmp_path)
    for path, text in found.items():
        assert re.fullmatch(r"([a-z]+/)?[a-z0-9_][a-z0-9._-]*\.html", path)
        page = document(text)
        assert {element.get("src") for element in page.xpath("//script[@src]")} <= {
            f"{'../' * path.count('/')}assets/{name}.js" for name in ("vega", "tables", "site", "data/compare")
        }
        assert all(script.get("type") == "application/json" for script in page.xpath("//script[not(@src)]"))
        for script in page.xpath("//script[not(@src)]"):
            json.loads(script.text)
        assert not page.xpath("//iframe | //svg | //textarea | //*[@onerror or @onload or @onmouseover]")
        assert all(image.get("src").startswith("../samples/") for image in page.xpath("//img"))
        assert all(link.startswith(("#", "https://arxiv.org/")) or ".html" in link for link in page.xpath("//a/@href"))
        assert not set(map(chr, (*range(9), *range(14, 32), 127, 0x202E))) & set(text)
    assert {names.method_page(f"vision/{name}") for name in site.NAMES.values()} <= set(found)


def test_226_methods_fit_on_a_page(tmp_path):
    site.large(tmp_path, tasks=1, seeds=2, points=2)
    found = made(tmp_path)
    sizes = {path: len(text.encode()) for path, text in found.items()}
    assert len(rows(found["tasks/vision.task-00.cpu.html"])) == 226
    assert max(sizes.values()) < LARGEST_PAGE, max(sizes.items(), key=lambda item: item[1])


def test_a_summary_leaves_floor_and_ceiling_aside(tmp_path):
    put(tmp_path, grid(SCORES, spec=SPEC))
    board = duck.query(tmp_path, lambda con: data.load(con, Registry(), Selection())).boards[0]
    found = summary(board, "page")
    assert found.leader is not None
    assert (found.leader.label, found.methods, found.better, found.worse, found.failed) == ("good", 3, 1, 1, 2)
    assert FINDINGS > 100
