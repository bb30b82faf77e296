"""Published caption files beside the human references: where machines are generic, and where super-human.

Give the COCO results files of several captioners, such as those that CLIP-Caption-Reward publishes for its rewards.
The yardstick is what people give among themselves: one caption of every image against the others. A captioner above
the range of one more person is more typical than people (generic); one below it is less typical (more specific than
people are).
"""

from __future__ import annotations

from pathlib import Path

import _shared
import torch

from clipconformity.data import read_results, write_results
from clipconformity.demo import generic_caption, sample_scenes, specific_caption
from clipconformity.evaluation import caption_source, human_spread, score


def drawn(options) -> list:
    """Write results files of a generic and of an over-specific captioner for the drawn scenes."""
    scenes = sample_scenes(60, seed=0)
    found = []
    for name, caption in (("generic", generic_caption), ("specific", specific_caption)):
        path = options.output / f"{name}.json"
        write_results(path, list(range(1, 61)), [caption(scene) for scene in scenes])
        found.append((name, path))
    return found


def word(shift: float, low: float, high: float) -> str:
    """Place a captioner beside people."""
    if low <= shift <= high:
        return "cannot be told from one more person"
    if shift > high:
        return "more typical than people: generic"
    return "less typical than people: more specific than they are"


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "caption_reward")
    made.add_argument("--results", type=_shared.named, nargs="+", metavar="NAME=FILE", help="COCO results files")
    made.add_argument(
        "--karpathy", type=Path, help="split file, where the results are of its test split (with --split test)"
    )
    options = _shared.parse(made, arguments)
    if options.smoke:
        options.results = drawn(options)
    elif not options.results:
        made.error("give --results, one NAME=FILE for each captioner")
    _shared.different(made, options.results)
    coco, encoder = _shared.coco_and_encoder(options, per_image=None, karpathy=options.karpathy)
    batches = list(caption_source(coco.captions, encoder))
    everything = torch.cat([batch.embeddings.cpu() for batch in batches])
    human = human_spread(everything, coco.captions.groups or [], seed=options.seed)
    reference = _shared.text_reference(coco, encoder)
    low, high = human.one_more()
    scores, words = {}, {}
    for name, path in options.results:
        captions = read_results(path, coco.image_ids, on_missing="skip")
        if len(captions.texts) < len(coco.image_ids):
            print(
                f"{name}: {len(coco.image_ids) - len(captions.texts)} of {len(coco.image_ids)} images have no caption"
            )
        scores[name] = score(caption_source(captions, encoder), reference, resamples=options.resamples)
        words[name] = word(scores[name].typicality_shift, low, high)
    people = {name: values.tolist() for name, values in human._asdict().items()}
    _shared.report(options.output, reference, scores, human=people, beside_people=words)
    print(
        f"people, one caption against the others: one more would have a typicality shift of {low:+.2f} to {high:+.2f}"
    )
    for name, text in words.items():
        print(f"{name}: typicality shift {scores[name].typicality_shift:+.2f}, {text}")


if __name__ == "__main__":
    _shared.run(main)
