"""A validation as JUnit XML, the form in which build servers take test results: one test case per check."""

from __future__ import annotations

from xml.etree import ElementTree

from normfuse.report.verdict import Check, Leg, ValidationReport, Verdict


def junit(report: ValidationReport) -> str:
    """Return one suite per leg; a divergent check is a failure, one that says nothing is skipped."""
    root = ElementTree.Element("testsuites", name="normfuse validate")
    for leg in report.legs:
        _suite(root, leg, [check for check in report.checks if check.leg == leg.name])
    if report.unreached:
        suite = ElementTree.SubElement(root, "testsuite", name="unreached", tests=str(len(report.unreached)))
        suite.set("failures", str(len(report.unreached)))
        for words in report.unreached:
            case = ElementTree.SubElement(suite, "testcase", classname="unreached", name=_clean(words))
            ElementTree.SubElement(case, "failure", message=_clean(words))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, leg: Leg, checks: list[Check]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=leg.name, tests=str(max(1, len(checks))))
    counts = {verdict: sum(check.verdict is verdict for check in checks) for verdict in Verdict}
    if not checks:
        counts[leg.verdict] = 1
        case = ElementTree.SubElement(suite, "testcase", classname=leg.name, name="the whole graph")
        _outcome(case, leg.verdict, leg.reason)
    for check in checks:
        name = _clean(f"{check.inputs}: {check.subject}")
        case = ElementTree.SubElement(suite, "testcase", classname=leg.name, name=name)
        _outcome(case, check.verdict, check.detail)
    suite.set("failures", str(counts[Verdict.DIVERGENT]))
    suite.set("skipped", str(counts[Verdict.NOT_RUN]))


def _outcome(case: ElementTree.Element, verdict: Verdict, words: str) -> None:
    if verdict is not Verdict.EQUIVALENT:
        tag = "failure" if verdict is Verdict.DIVERGENT else "skipped"
        ElementTree.SubElement(case, tag, message=_clean(words))


def _clean(text: str) -> str:
    """Return ``text`` without the control characters that XML 1.0 does not have."""
    return "".join(character for character in text if character >= " " or character in "\t\n")
