"""Texts in pages: nothing of theirs is HTML, and JSON in a page cannot end its script."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from kdbench.leaderboard.report import context
from kdbench.leaderboard.statistics import Estimate
from tests.helpers.site import NAMES


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_in_a_page_is_the_value_and_has_no_character_of_html(value):
    text = context.json_script(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_json_in_a_page_refuses_what_json_does_not_know():
    with pytest.raises(ValueError, match="JSON"):
        context.json_script([float("nan")])


def test_expressions_of_templates_are_escaped_and_control_characters_shown():
    template = context.environment().from_string("<p title='{{ x }}'>{{ x }}</p>{{ missing }}")
    text = template.render(x="<b>'\"&\x1b\u202e", missing=None)
    assert text == "<p title='&lt;b&gt;&#39;&#34;&amp;\\x1b\\u202e'>&lt;b&gt;&#39;&#34;&amp;\\x1b\\u202e</p>"


def test_texts_of_several_lines_keep_them():
    template = context.environment().from_string("{{ x|multiline }}")
    assert template.render(x="a\r\n<b>\x07\n\tc") == "a\n&lt;b&gt;\\x07\n\\tc"


@pytest.mark.parametrize("name", ["script", "attribute", "markdown", "frame"])
def test_markdown_of_extensions_makes_no_html_of_its_own(name):
    html = context.markdown(NAMES[name])
    assert isinstance(html, Markup)
    assert not any(tag in html for tag in ("<script", "<img", "<iframe", 'href="javascript'))


def test_markdown_of_extensions_is_shown():
    html = context.markdown("| a | b |\n|---|---|\n| 1 | *2* |\n\n[x](https://example.com)")
    assert "<td><em>2</em></td>" in html
    assert 'href="https://example.com"' in html


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Estimate(0.7123, 0.7033, 0.7213, 5), "71.23<i>± 0.90</i>"),
        (Estimate(0.5, None, None, 1), "50<i></i>"),
        (None, "–<i></i>"),
    ],
)
def test_an_estimate_is_shown_with_its_interval(value, shown):
    assert context.number(value, 100) == shown


@pytest.mark.parametrize(
    ("value", "meter", "shown"),
    [
        (90.0, "train_seconds", "1 min 30 s"),
        (2**30, "peak_rss_bytes", "1.0 GiB"),
        (6400, "steps", "6.4k"),
        (None, "steps", "–"),
    ],
)
def test_an_amount_has_the_unit_of_its_meter(value, meter, shown):
    assert context.amount(value, meter) == shown
