"""Make the pictures of the front page from the results of the demo.

    clipconformity demo -o demo-output
    python docs/pictures.py demo-output

Writes `_static/map.png`, where the five simulated generators lie, and `_static/demo.png`, their distributions.
"""

import json
import shutil
import sys
from pathlib import Path

from clipconformity import plots
from clipconformity.evaluation.results import MARGINS

STATIC = Path(__file__).parent / "_static"
NAMES = {
    "images-common": "images: draws the common",
    "images-diverse": "images: diverse",
    "images-single": "images: repeats one scene",
    "captions-generic": "captions: generic",
    "captions-specific": "captions: specific",
}


def main() -> None:
    """Draw the map, and copy the distributions."""
    demo = Path(sys.argv[1])
    runs = json.loads((demo / "results.json").read_text(encoding="utf-8"))["runs"]
    places = {}
    for name, title in NAMES.items():
        shift, ratio = (
            [runs[name][key + end] for end in ("", "_low", "_high")] for key in ("typicality_shift", "variety_ratio")
        )
        places[title] = plots.Place(tuple(shift), tuple(ratio))
    figure, _ = plots.typicality_and_variety(places, margins=(MARGINS["typicality"], MARGINS["variety"]))
    plots.save(figure, STATIC / "map.png")
    shutil.copyfile(demo / "distributions.png", STATIC / "demo.png")


if __name__ == "__main__":
    main()
