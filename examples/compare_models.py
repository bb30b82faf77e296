"""Several generators against one reference: the paper's table with intervals, and a picture.

Give a folder of images for each generator, such as ``examples/unclip.py`` and others write.
"""

from __future__ import annotations

import _shared

from clipconformity.data import list_images
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.encoders import load_encoder
from clipconformity.stream.reference import ReferenceSet


def drawn(options) -> list:
    """Draw the folders of three simulated generators: diverse, common, and with one scene alone."""
    found = []
    for name, concentration, count in (("diverse", 1.0, 40), ("common", 2.5, 40), ("single", 1.0, 1)):
        folder = options.output / name
        folder.mkdir(exist_ok=True)
        scenes = sample_scenes(count, seed=7, concentration=concentration) * (40 // count)
        for number, scene in enumerate(scenes):
            draw_scene(scene, seed=number).save(folder / f"{number:03d}.png")
        found.append((name, folder))
    return found


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "compare_models")
    made.add_argument("--images", type=_shared.named, nargs="+", metavar="NAME=DIR", help="folders of generators")
    made.add_argument("--reference", help="reference file, instead of building one from --coco")
    options = _shared.parse(made, arguments)
    if options.smoke:
        options.images = drawn(options)
    elif not options.images:
        made.error("give --images, one NAME=DIR for each generator")
    _shared.different(made, options.images)
    if options.reference:
        reference = ReferenceSet.load(options.reference)
        encoder = load_encoder(options.encoder, options.device)  # a reference of another encoder is refused
    else:
        coco, encoder = _shared.coco_and_encoder(options)
        reference = _shared.image_reference(coco, encoder)
    scores = {
        name: _shared.score_images(list_images(folder)[: options.limit], encoder, reference, options.resamples)
        for name, folder in options.images
    }
    _shared.report(options.output, reference, scores)


if __name__ == "__main__":
    _shared.run(main)
