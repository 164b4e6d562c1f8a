"""One report in its four forms: every figure is where a reader, a program or a build server looks for it."""

from __future__ import annotations

import html
import io
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
from normfuse.report.terminal import styled
from normfuse.report.verdict import Check, Leg, ValidationReport, Verdict
from normfuse.report.verdict_table import validation as verdict_table
from tests.report.example import NORMS, example

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_json_follows_the_published_schema() -> None:
    schema = json.loads((Path(normfuse.report.__file__).parent / "validation.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = validation(example())
    jsonschema.validate(content, schema)
    assert content["checks"][2]["error"] is None
    assert content["location"]["rewrite"] == "fold:bn"
    assert content["rankings"] == [
        {"leg": "cpu", "output": "logits", "samples": 12, "same_first": 12, "same_order": 11, "depth": 5}
    ]
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


def test_one_line_a_check_then_what_failed() -> None:
    assert example().table().splitlines() == [
        "✓ oracle standard normal output 'y'   error 1 ulp",
        "✗ oracle standard normal segment 'bn' error 8e+03 ulp & <more>",
        "– oracle mean 10000      output 'y'   ill-conditioned",
        "oracle: DIVERGENT (3 checks on 2 input families): segment 'bn'",
        "  standard normal · segment 'bn': error 8e+03 ulp & <more>",
        "cuda: NOT_RUN: the provider is not available",
        "cpu: output 'logits' has the same class first for 12 of 12 samples, the same first 5 in the same order for 11",
        "where: the verdict flips with rewrite 2 of 3",
        "  before: /conv, /bn<1>; after: /conv",
        "  first value beyond its budget: bn",
        "not verified: no input enters else_branch",
        "note: a note",
        "verdict: DIVERGENT",
    ]


def many(count: int, failing: int) -> ValidationReport:
    """Return a report of ``count`` segments, and as many outputs, of which the last ``failing`` fail."""
    verdicts = [Verdict.EQUIVALENT] * (count - failing) + [Verdict.DIVERGENT] * failing
    checks = [
        Check("oracle", "standard normal", f"{kind} '{index}'", verdict, 1.0 + index, 0.0, 100.0, f"error {index} ulp (nodes a, b)")
        for kind in ("segment", "output") for index, verdict in enumerate(verdicts)
    ]  # fmt: skip
    worst = Verdict.DIVERGENT if failing else Verdict.EQUIVALENT
    return ValidationReport((Leg("oracle", worst),), tuple(checks))


def test_segments_share_a_line_and_failures_are_not_cut() -> None:
    passed, failed = many(60, 0).table().splitlines(), many(60, 2).table().splitlines()
    assert passed[0] == "✓ oracle standard normal 60 segments error 59 ulp at '59'"
    assert passed[39:41] == [
        "✓ oracle standard normal output '38' error 38 ulp",
        "… and 21 more lines (--json lists every check)",
    ]
    assert failed[0] == "✗ oracle standard normal 60 segments 2 failed"
    assert failed[38:40] == [f"✗ oracle standard normal output '{index}' error {index} ulp" for index in (58, 59)]
    assert failed[41] == "oracle: DIVERGENT (120 checks on 1 input family)"
    assert failed[42:44] == [
        f"  standard normal · segment '{index}': error {index} ulp (nodes a, b)" for index in (58, 59)
    ]


class Screen(io.StringIO):
    """A terminal that keeps what it is shown."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("wants_colour", [True, False])
def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch, wants_colour: bool) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "50")
    if not wants_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    shown = styled(verdict_table(example()), Screen())
    assert ("\x1b[" in shown) is wants_colour
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[1].rstrip() == "✗ oracle standard normal segment 'bn' error 8e+03…"
    assert "  standard normal · segment 'bn': error 8e+03 ulp & <more>" in lines
    assert styled(verdict_table(example()), io.StringIO()) == example().table()


def test_names_are_not_read_as_markup() -> None:
    check = Check("oracle", "[red]x", "output ':smile:'", Verdict.EQUIVALENT, 0.0, 0.0, 1.0, "[b]d")
    report = ValidationReport((Leg("oracle", Verdict.EQUIVALENT, "[i]r"),), (check,), notes=("[u]:boom:",))
    assert report.table().splitlines() == [
        "✓ oracle [red]x output ':smile:' [b]d",
        "oracle: EQUIVALENT (1 check on 1 input family): [i]r",
        "note: [u]:boom:",
        "verdict: EQUIVALENT",
    ]


def test_page_is_self_contained_and_escaped() -> None:
    text = page(example(), NORMS, ("a.onnx", "b<i>.onnx"))
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)""", text)
    assert "b&lt;i&gt;.onnx" in text
    assert "error 8e+03 ulp &amp; &lt;more&gt;" in text
    assert text.index('id="verdict"') < text.index('id="failed"') < text.index('id="norms"') < text.index('id="depth"')
    assert re.search(
        r'"plan">fold into /conv</td>\s*<td class="DIVERGENT long" data-name="error">error 8e\+03 ulp', text
    )
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


def test_ranking_is_in_the_text_and_on_the_page() -> None:
    words = (
        "cpu: output 'logits' has the same class first for 12 of 12 samples, the same first 5 in the same order for 11"
    )
    assert words in example().table()
    assert words in html.unescape(page(example()))
