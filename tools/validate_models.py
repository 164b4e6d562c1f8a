"""Time `normfuse validate` on real models, with the peak memory of all of its processes together.

    python tools/validate_models.py                    builds an environment in build/real-models, runs there
    python tools/validate_models.py --here bert gpt2   runs in this environment, the models whose name contains one of these

Each model is exported, its norms with random statistics, and fused (kept in --folder for the next time); then the command
is run as a user runs it, with default families and with --quick. Memory is the resident memory of the process and its
children, sampled every 20 ms, without what they share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import architectures  # noqa: E402
from tools.architectures import Built  # noqa: E402
from tools.environments import chosen, of_real_models, parser_of, run_there  # noqa: E402
from tools.real_models import exported  # noqa: E402

_FLAGS: dict[str, tuple[str, ...]] = {"default": (), "quick": ("--quick",)}


def bert_base() -> Built:
    """Bert at its full size, 110 million parameters: LayerNorm."""
    import torch
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig()), (torch.arange(128).reshape(1, 128),)


def gpt2_medium() -> Built:
    """GPT-2 medium, 355 million parameters: LayerNorm. Too large to be evaluated as a whole."""
    import torch
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16, use_cache=False)
    return GPT2Model(config), (torch.arange(64).reshape(1, 64),)


def llama_600m() -> Built:
    """A Llama of 600 million parameters, 2.4 GB: RMSNorm. Beyond what one protobuf file holds."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=32000, hidden_size=1536, intermediate_size=4096, num_hidden_layers=19, num_attention_heads=12,
        use_cache=False,
    )  # fmt: skip
    return LlamaModel(config), (torch.arange(64).reshape(1, 64),)


def resnet50() -> Built:
    """ResNet-50 of pytorchcv at 224: BatchNorm."""
    from pytorchcv.models.resnet import resnet50 as build

    return build(), (architectures.image(1, 3, 224, 224),)


MODELS: tuple[Callable[[], Built], ...] = (
    architectures.pytorchcv_resnet18,
    resnet50,
    architectures.pytorchcv_mobilenetv2,
    architectures.pytorchcv_densenet121,
    architectures.pytorchcv_ibn_resnet50,
    architectures.timm_repvgg_a0,
    architectures.transformers_convnextv2,
    architectures.transformers_segformer,
    architectures.diffusers_unet2d,
    architectures.monai_segresnet_group,
    architectures.transformers_llama,
    bert_base,
    gpt2_medium,
    llama_600m,
)


def files(build: Callable[[], Built], folder: Path) -> tuple[Path, Path]:
    """Return the exported and the fused model, made in a process of its own where they are not there yet."""
    paths = folder / f"{build.__name__}.onnx", folder / f"{build.__name__}.fused.onnx"
    if not all(path.exists() for path in paths):
        command = [sys.executable, str(Path(__file__).resolve()), "--here", "--folder", str(folder), "--make"]
        subprocess.run([*command, build.__name__], check=True, stdout=subprocess.DEVNULL)
    return paths


def make(build: Callable[[], Built], folder: Path) -> None:
    """Export and fuse one model."""
    import normfuse

    model = exported(build)
    normfuse.save(model, folder / f"{build.__name__}.onnx")
    normfuse.save(normfuse.fuse(folder / f"{build.__name__}.onnx")[0], folder / f"{build.__name__}.fused.onnx")


def descendants(root: int) -> Iterator[int]:
    """Yield a process and all of its descendants."""
    yield root
    try:
        tasks = os.listdir(f"/proc/{root}/task")
        children = " ".join(Path(f"/proc/{root}/task/{task}/children").read_text() for task in tasks)
    except OSError:
        return
    for child in children.split():
        yield from descendants(int(child))


def resident(process: int) -> int:
    """Return the bytes that a process has for itself: private pages and its part of shared ones."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def measured(command: list[str]) -> tuple[int, float, float]:
    """Run a command; return its exit code, seconds, and peak bytes."""
    peak = 0.0
    start = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, sum(map(resident, descendants(running.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = running.wait()
    over.set()
    watcher.join()
    return code, time.perf_counter() - start, peak


def run(names: list[str], folder: Path) -> int:
    """Print the table; return 1 if any model is not equivalent."""
    print("| model | MB of weights | checks | verdict | seconds | --quick | peak GB | --quick |")
    print("|---" * 8 + "|")
    failed = 0
    for build in chosen(MODELS, names):
        original, fused = files(build, folder)
        size = sum(path.stat().st_size for path in folder.glob(f"{build.__name__}.onnx*"))
        size += sum(
            path.stat().st_size for path in folder.glob(f"{build.__name__}.*.data") if ".fused" not in path.name
        )
        taken, peaks, report = [], [], {}
        with tempfile.TemporaryDirectory() as scratch:
            for mode, flags in reversed(_FLAGS.items()):
                verdict = Path(scratch) / f"{mode}.json"
                command = [sys.executable, "-m", "normfuse", "validate", str(original), str(fused), *flags]
                code, seconds, peak = measured([*command, "--json", str(verdict)])
                failed += code != 0
                taken.insert(0, f"{seconds:.1f}")
                peaks.insert(0, f"{peak / 1e9:.2f}")
                report = (
                    json.loads(verdict.read_text()) if verdict.exists() else {"verdict": f"exit {code}", "checks": []}
                )
        cells = [build.__name__, f"{size / 1e6:.0f}", str(len(report["checks"])), report["verdict"], *taken, *peaks]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 1 if failed else 0


def main() -> None:
    """Parse the command line and run, in an environment of its own unless told otherwise."""
    parser = parser_of(__doc__)
    parser.add_argument("--make", action="store_true", help="export and fuse only")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "validate-models")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.make:
        for build in MODELS:
            if build.__name__ in arguments.names:
                make(build, arguments.folder)
    elif arguments.here:
        sys.exit(run(arguments.names, arguments.folder))
    else:
        sys.exit(run_there(of_real_models(), __file__, [*arguments.names, "--folder", str(arguments.folder)]))


if __name__ == "__main__":
    main()
