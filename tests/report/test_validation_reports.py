"""One report in its four forms: every figure is where a reader, a program or a build server looks for it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

import normfuse.report
from normfuse.report.junit import junit
from normfuse.report.page import page
from normfuse.report.schema import validation
from normfuse.report.table import validation as table
from tests.report.example import NORMS, example

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_json_follows_the_published_schema() -> None:
    schema = json.loads((Path(normfuse.report.__file__).parent / "validation.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = validation(example())
    jsonschema.validate(content, schema)
    assert content["checks"][2]["error"] is None
    assert content["location"]["rewrite"] == "fold:bn"
    content["checks"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_junit() -> None:
    root = ElementTree.fromstring(junit(example()))
    suites = {suite.get("name"): suite for suite in root}
    assert {name: (suite.get("tests"), suite.get("failures"), suite.get("skipped")) for name, suite in suites.items()} == {
        "oracle": ("3", "1", "1"), "cuda": ("1", "0", "1"), "unreached": ("1", "1", None),
    }  # fmt: skip
    failure = suites["oracle"].find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "error 8e+03 ulp & <more>"


def test_terminal() -> None:
    text = table(example())
    assert "where: the verdict flips with rewrite 2 of 3" in text
    assert "before: /conv, /bn<1>; after: /conv" in text
    assert "not verified: no input enters else_branch" in text


def test_page_is_self_contained_and_escaped() -> None:
    text = page(example(), NORMS, ("a.onnx", "b<i>.onnx"))
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)""", text)
    assert "b&lt;i&gt;.onnx" in text
    assert "error 8e+03 ulp &amp; &lt;more&gt;" in text
    assert text.index('id="verdict"') < text.index('id="failed"') < text.index('id="norms"') < text.index('id="depth"')
    # Three of the six points lie above 1e-6.
    assert text.count("<circle") == 2


def browse(path: Path, *flags: str) -> str:
    """Return what headless Chromium says of a page."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={path.parent / 'profile'}", *flags]  # fmt: skip
    return subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout


PROBE = """<script>frame.onload = () => { const page = frame.contentDocument, at = (what) => page.querySelector(what);
    document.title = [page.documentElement.scrollWidth <= frame.clientWidth,
        at("#verdict").getBoundingClientRect().top < 100, at("#depth").getBoundingClientRect().height > 50,
        page.querySelectorAll("#checks tr").length, getComputedStyle(at("#checks thead")).display].join(" ") }</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_page_in_a_browser(tmp_path: Path) -> None:
    """At the width of a phone nothing is cut off, at that of a desk everything is drawn, and it prints."""
    text = page(example(), NORMS, ("a.onnx", "b.onnx"))
    for width, head in ((360, "none"), (1200, "table-header-group")):
        target = tmp_path / f"{width}.html"
        frame = f'<iframe id="frame" style="width:{width}px;height:800px" srcdoc="{html.escape(text)}"></iframe>'
        target.write_text(f"<!doctype html><title></title>{frame}{PROBE}", encoding="utf-8")
        title = re.search(r"<title>(.*?)</title>", browse(target, "--dump-dom"))
        assert title is not None
        assert title[1] == f"true true true 4 {head}"
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    printed = tmp_path / "report.pdf"
    browse(tmp_path / "report.html", f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
