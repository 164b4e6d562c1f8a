"""What each form leaves of the norms of real architectures, and whether it is equivalent: a row per model and form.

    python tools/residue.py [--opset 18] [--form auto standard custom ort primitive]    in build/real-models
    python tools/residue.py --here bert llama          in this environment, models whose name contains one of these

left: norms in several operators although the opset has one for them, which the form would have written; primitive leaves
all, as asked. no operator: norms in several operators for which the opset has none (RMSNormalization came with 23,
GroupNormalization with parameters per channel with 21). declined: what looks like a norm and was left alone with a
reason. verdict: of validate --quick. The exit status is 1 where a norm is left, is declined, or a model is not equivalent.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import architectures as known  # noqa: E402  (the checkout must be on the path first)
from tools.environments import chosen, of_real_models, parser_of, run_there  # noqa: E402
from tools.real_models import exported, norm_counts  # noqa: E402

MODELS: tuple[Callable[[], known.Built], ...] = (
    known.transformers_bert,
    known.transformers_gpt2,
    known.transformers_llama,
    known.transformers_gemma,
    known.transformers_t5,
    known.transformers_convnextv2,
    known.transformers_segformer,
    known.transformers_wav2vec2,
    known.diffusers_unet2d,
    known.diffusers_autoencoder,
    known.diffusers_dit,
    known.diffusers_sd3,
    known.monai_segresnet_group,
    known.monai_unet_instance,
    known.timm_bit,
)
FORMS = ("auto", "standard", "custom", "ort", "primitive")
SINCE = {"instance": 1, "layer": 17, "group": 21, "rms": 23}


def rows(build: Callable[[], known.Built], forms: list[str], opset: int) -> Iterator[tuple[list[str], bool]]:
    """Export one model, write it in every form; yield a row of the table, and whether it is as promised."""
    import normfuse
    from normfuse.emit.target import Form, Target

    original = exported(build, opset)
    before = norm_counts(original)
    for form in forms:
        fused, _ = normfuse.fuse(original, Target(Form(form)))
        verdict = normfuse.validate(original, fused, quick=True).verdict.value
        seen = normfuse.inspect(fused, Target(Form.CUSTOM))
        several = [record.norm for record in seen.norms if len(record.nodes) > 1 and record.norm in SINCE]
        left = sum(SINCE[norm] <= opset for norm in several)
        good = verdict == "EQUIVALENT" and not seen.declined and (left == 0 or form == "primitive")
        counts = [str(left), str(len(several) - left), str(len(seen.declined))]
        yield [build.__name__, form, before, norm_counts(fused), *counts, verdict], good


def run(names: list[str], forms: list[str], opset: int) -> int:
    """Print the table; return 1 where a row is not as promised."""
    warnings.simplefilter("ignore")
    print("| model | form | norms before | after | left | no operator | declined | verdict |")
    print("|---" * 8 + "|")
    failed = 0
    for build in chosen(MODELS, names):
        for cells, good in rows(build, forms, opset):
            failed += not good
            print(f"| {' | '.join(cells)} |", flush=True)
    return 1 if failed else 0


def main() -> None:
    """Parse the command line and run, in the environment of tools/real_models.py unless told otherwise."""
    parser = parser_of(__doc__)
    parser.add_argument("--form", nargs="+", default=list(FORMS))
    parser.add_argument("--opset", type=int, default=18, help="the opset of the export")
    arguments = parser.parse_args()
    if arguments.here:
        sys.exit(run(arguments.names, arguments.form, arguments.opset))
    words = [*arguments.names, "--form", *arguments.form, "--opset", str(arguments.opset)]
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run_there(of_real_models(), __file__, words, folder))


if __name__ == "__main__":
    main()
