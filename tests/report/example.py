"""A validation report with something in every part."""

from __future__ import annotations

from normfuse.report.verdict import Check, DepthPoint, Latency, Leg, Location, Ranking, ValidationReport, Verdict

BINS = tuple(range(13))
NORMS = [{"norm": "batch", "nodes": ["/bn<1>"], "spelling": "BatchNormalization-15", "plan": "fold into /conv"}]


def example() -> ValidationReport:
    """Return a divergent report."""
    checks = (
        Check("oracle", "standard normal", "output 'y'", Verdict.EQUIVALENT, 1e-7, 0.0, 3e-7, "error 1 ulp", (), (BINS, BINS[::-1])),
        Check("oracle", "standard normal", "segment 'bn'", Verdict.DIVERGENT, 1e-3, 0.0, 3e-7, "error 8e+03 ulp & <more>", ("/bn<1>",)),
        Check("oracle", "mean 10000", "output 'y'", Verdict.NOT_RUN, float("nan"), float("nan"), float("nan"), "ill-conditioned"),
    )  # fmt: skip
    return ValidationReport(
        (
            Leg("oracle", Verdict.DIVERGENT, "segment 'bn'"),
            Leg("cuda", Verdict.NOT_RUN, "the provider is not available"),
        ),
        checks,
        notes=("a note",),
        unreached=("no input enters else_branch",),
        latencies=(Latency("cpu", "optimizations on", 0.002, 0.0015),),
        rankings=(Ranking("cpu", "logits", 12, 12, 11, 5),),
        curve=tuple(DepthPoint(f"v{index}", "Conv", 10.0 ** (index - 9), 1e-6) for index in range(6)),
        location=Location("fold:bn", ("/conv", "/bn<1>"), ("/conv",), "bn", "the verdict flips with rewrite 2 of 3"),
        environment=(("python", "3.11"),),
    )
