import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from fewstep.report.rendering import render

PAGE = {"title": "a < b", "summary": "", "notes": ["<i>"], "tiles": Markup("<p>tile</p>")}


def test_strings_are_escaped_and_markup_is_not():
    html = render("page.html.j2", **PAGE, sections={})
    assert "<h1>a &lt; b</h1>" in html and "<li>&lt;i&gt;</li>" in html
    assert "<p>tile</p>" in html


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError, match="'sections' is undefined"):
        render("page.html.j2", **PAGE)
