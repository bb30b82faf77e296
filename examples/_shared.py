"""What the examples share: arguments, references of MS-COCO, a table and a picture of scores."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _smoke
import torch

from clipconformity.data import Coco, read_coco
from clipconformity.encoders import BaseEncoder, load_encoder
from clipconformity.evaluation import Score, build_reference, caption_source, image_source, score
from clipconformity.functional.divergence import MIN_SAMPLES
from clipconformity.stream.reference import ReferenceSet

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#767676"


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Arguments of every example."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="run offline with small random models on drawn scenes")
    made.add_argument("--coco", type=Path, help="folder of MS-COCO")
    made.add_argument("--split", default="val2017", help="split of MS-COCO")
    made.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="what measures")
    made.add_argument("--limit", type=int, default=5000, help="most images or prompts")
    made.add_argument("--batch-size", type=int, default=8, help="images made at once")
    # Under torchrun each process has a GPU of its own.
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    made.add_argument("--device", default=device, help="where the models run")
    made.add_argument("--seed", type=int, default=0, help="of the run")
    made.add_argument("-o", "--output", type=Path, default=Path("example-output") / name, help="folder to write to")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments; in smoke mode, put in the small stand-ins."""
    options = made.parse_args(arguments)
    if options.limit < MIN_SAMPLES:
        made.error(f"--limit: expected at least {MIN_SAMPLES}, got {options.limit}; fewer cannot be measured")
    options.output.mkdir(parents=True, exist_ok=True)
    options.resamples = 1000
    if options.smoke:
        warnings.filterwarnings("ignore")  # random models, and classes that diffusers calls deprecated
        options.coco, options.encoder, options.device = _smoke.coco(options.output / "coco"), "tiny", "cpu"
        options.limit, options.resamples = min(options.limit, 24), 100
    elif options.coco is None and not getattr(options, "reference", None):
        made.error("give --coco, the folder of MS-COCO, or --smoke")
    return options


def run(main: Callable[[], None]) -> None:
    """Run a script, and say in one line what was given wrong."""
    try:
        main()
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


def alone(made: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse several processes where one measures: they would each take a part for the whole."""
    if processes()[1] > 1 and not getattr(options, "generate_only", False):
        hint = "give --generate-only, then measure without torchrun" if hasattr(options, "generate_only") else "run one"
        made.error(f"several processes: {hint}")


def processes() -> tuple[int, int]:
    """Number of this process and of all, as torchrun tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def half(device: str) -> torch.dtype:
    """Half precision, or single on a CPU, which has no fast arithmetic for less."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.float16


def load_pipeline(kind: Any, model: str, device: str) -> Any:
    """Load a diffusers pipeline, in half precision where that is fast, without a bar for every image."""
    _smoke.unclip_module()
    return _smoke.quiet(kind.from_pretrained(model, trust_remote_code=False).to(device, half(device)))


def coco_and_encoder(
    options: argparse.Namespace, per_image: int | None = 1, karpathy: Path | None = None
) -> tuple[Coco, BaseEncoder]:
    """Read MS-COCO, keep which captions were chosen beside the results, and load what measures."""
    coco = read_coco(options.coco, options.split, per_image=per_image, seed=options.seed, karpathy=karpathy)
    coco.save_captions(options.output / "captions-chosen.json")
    return coco, load_encoder(options.encoder, options.device)


def image_reference(coco: Coco, encoder: BaseEncoder) -> ReferenceSet:
    """Build the reference of the split's images."""
    return build_reference(image_source(coco.image_paths, encoder), dataset=coco.name)


def text_reference(coco: Coco, encoder: BaseEncoder) -> ReferenceSet:
    """Build the reference of the chosen captions."""
    return build_reference(caption_source(coco.captions, encoder), dataset=coco.name)


def score_images(paths: Sequence[Path], encoder: BaseEncoder, reference: ReferenceSet, resamples: int) -> Score:
    """Score image files."""
    return score(image_source(list(paths), encoder), reference, resamples=resamples)


def report(output: Path, reference: ReferenceSet, scores: dict[str, Score], **more: Any) -> None:
    """Print a table, and write ``results.json`` and ``comparison.png``."""
    print(table(reference, scores))
    runs = {name: one.to_dict() for name, one in scores.items()}
    content = {"reference": reference.describe(), "runs": runs} | more
    (output / "results.json").write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
    picture(output / "comparison.png", reference, scores, more.get("human"))
    print(f"Written: {output / 'results.json'} and {output / 'comparison.png'}")


def table(reference: ReferenceSet, scores: dict[str, Score]) -> str:
    """Draw the paper's table: typical, alike, KL with its interval."""
    wide = max(12, *(len(name) for name in scores))
    lines = [
        "typical: conformity to the reference (higher is more common); alike: self-conformity (lower is more varied);",
        "KL in nats with its 95% interval, with > where it is only a lower bound; floor: what noise alone would give",
        f"{'':{wide}} {'typical':>8} {'alike':>7} {'KL':>7} {'95% interval':>17} {'floor':>7} {'N':>6}",
        f"{'reference':{wide}} {float(reference.conformities.mean()):8.3f} {float(reference.self_conformity):7.3f} "
        f"{'':7} {'':17} {'':7} {reference.count:6d}",
    ]
    for name, s in scores.items():
        interval, floor = s.figures["conformity_kl"].interval_text(), s.figures["noise_floor"].text()
        kl = f"{'>' if s.kl_is_lower_bound else ''}{s.conformity_kl:.3f}"
        lines.append(
            f"{name:{wide}} {s.conformity_mean:8.3f} {s.self_conformity_mean:7.3f} {kl:>7} "
            f"{interval:>17} {floor:>7} {s.count:6d}"
        )
        lines.append(f"{'':{wide}} {s.sentences['typical']}; {s.sentences['varied']}")
    return "\n".join(lines)


def picture(path: Path, reference: ReferenceSet, scores: dict[str, Score], human: dict[str, Any] | None = None) -> None:
    """Draw KL with intervals, and typicality against variety."""
    import matplotlib.pyplot as plt

    height = 2.2 + 0.4 * len(scores)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, max(4.0, height)), layout="constrained")
    for place, (name, s) in enumerate(scores.items()):
        color = COLORS[place % len(COLORS)]
        left.plot(s.kl_interval or [], [place] * len(s.kl_interval or []), color=color, linewidth=2)
        left.plot(s.conformity_kl, place, ">" if s.kl_is_lower_bound else "o", color=color, clip_on=False, zorder=3)
        left.plot(s.noise_floor or 0.0, place, "|", color=GREY, markersize=14)
        across, up = (s.figures[key].half_width for key in ("self_conformity_mean", "conformity_mean"))
        right.errorbar(
            s.self_conformity_mean, s.conformity_mean, xerr=across, yerr=up, fmt="o", color=color, label=name
        )
    right.plot(
        float(reference.self_conformity), float(reference.self_conformity), "D", color="black", label="reference"
    )
    if human is not None:
        own, spread = float(reference.self_conformity), float(reference.spread.whole)
        typical = [own + shift * spread for shift in human["typicality_shift"]]
        right.plot(human["self_conformity"], typical, "k+", markersize=9, label="people, a caption each")
    left.set_yticks(range(len(scores)), list(scores))
    left.set_ylim(len(scores) - 0.5, -0.5)
    left.set_xlim(left=0)
    left.set_xlabel("conformity KL (nats), 95% interval\ngrey: noise floor; arrow: a lower bound")
    right.set_xlabel("self-conformity (lower: more varied)")
    right.set_ylabel("conformity to the reference, 95% intervals")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def different(made: argparse.ArgumentParser, pairs: Sequence[tuple[str, Path]]) -> None:
    """Refuse a name that is given twice."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        made.error(f"expected different names, got {', '.join(names)}")


def named(text: str) -> tuple[str, Path]:
    """Read ``NAME=PATH``."""
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, Path(path)
