import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from clipconformity.demo.scenes import (
    ATTRIBUTES,
    Scene,
    attribute_probabilities,
    caption_is_true,
    draw_scene,
    generic_caption,
    list_scenes,
    sample_scenes,
    scene_captions,
    scene_log_frequency,
    specific_caption,
    write_coco_scenes,
)

SYNONYMS = {"large": "big", "small": "little", "middle": "centre"}
SCENE = Scene("star", "orange", "tiny", "top", "asphalt")


def pixels(image):
    return np.asarray(image).astype(int)


def other_value(name, value):
    return next(v for v in ATTRIBUTES[name] if v != value)


def test_every_scene_appears_once():
    scenes = list(list_scenes())
    assert len(set(scenes)) == len(scenes) == math.prod(len(values) for values in ATTRIBUTES.values())


def test_frequencies_sum_to_one():
    total = math.fsum(math.exp(scene_log_frequency(scene)) for scene in list_scenes())
    assert total == pytest.approx(1, abs=1e-12)


def test_frequencies_have_a_long_tail():
    logs = [scene_log_frequency(scene) for scene in list_scenes()]
    assert max(logs) - min(logs) > math.log(10_000)


def test_an_unknown_value_is_an_error():
    with pytest.raises(ValueError, match="colour must be one of red"):
        Scene("star", "beige", "tiny", "top", "asphalt")


@pytest.mark.parametrize("concentration", [0.0, 1.0, 2.0])
def test_drawn_counts_follow_the_frequencies(concentration):
    count = 20_000
    drawn = Counter(sample_scenes(count, seed=1, concentration=concentration))
    scenes = sorted(list_scenes(), key=scene_log_frequency)
    expected = np.exp([concentration * scene_log_frequency(scene) for scene in scenes])
    expected *= count / expected.sum()
    cells = (np.cumsum(expected) / 10 - 1e-9).astype(int)  # neighbours pooled until about 10 draws are expected
    _, cells = np.unique(cells, return_inverse=True)
    observed = np.bincount(cells, weights=[drawn[scene] for scene in scenes])
    assert stats.chisquare(observed, np.bincount(cells, weights=expected)).pvalue > 0.001


def test_the_chi_square_test_sees_a_wrong_concentration():
    drawn = Counter(scene.shape for scene in sample_scenes(20_000, seed=1, concentration=1.05))
    observed = [drawn[shape] for shape in ATTRIBUTES["shape"]]
    assert stats.chisquare(observed, 20_000 * attribute_probabilities("shape")).pvalue < 0.001


def test_attributes_are_drawn_independently():
    scenes = sample_scenes(20_000, seed=2)
    table = np.zeros((len(ATTRIBUTES["size"]), len(ATTRIBUTES["position"])))
    for scene in scenes:
        table[ATTRIBUTES["size"].index(scene.size), ATTRIBUTES["position"].index(scene.position)] += 1
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_concentration_makes_scenes_more_common():
    sets = [sample_scenes(2000, seed=3, concentration=c) for c in (0, 1, 1.5, 3)]
    means = [np.mean([scene_log_frequency(scene) for scene in scenes]) for scenes in sets]
    assert means == sorted(means)


def test_same_seed_draws_the_same_scenes():
    assert sample_scenes(50, seed=4) == sample_scenes(50, seed=4)
    assert sample_scenes(50, seed=4) != sample_scenes(50, seed=5)
    assert sample_scenes(0, seed=4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "count must be at least 0"),
        ({"count": 1, "concentration": math.nan}, "must be finite"),
    ],
)
def test_sampling_refuses_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        sample_scenes(seed=0, **options)


def test_same_seed_draws_the_same_pixels():
    assert (pixels(draw_scene(SCENE, seed=1)) == pixels(draw_scene(SCENE, seed=1))).all()


def test_another_seed_draws_nearly_the_same_pixels():
    first, second = pixels(draw_scene(SCENE, seed=1)), pixels(draw_scene(SCENE, seed=2))
    assert (first != second).any()
    rare = pixels(draw_scene(Scene("bar", "cyan", "large", "middle", "snow"), seed=1))
    assert abs(first - second).mean() < abs(first - rare).mean() / 3


@pytest.mark.parametrize("size", [8, 32, 61])
def test_a_drawing_is_a_square_rgb_image(size):
    image = draw_scene(SCENE, size=size, seed=0)
    assert (image.size, image.mode) == ((size, size), "RGB")


def test_a_drawing_below_eight_pixels_is_an_error():
    with pytest.raises(ValueError, match="at least 8 pixels; got 4"):
        draw_scene(SCENE, size=4, seed=0)


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_every_value_is_visible(name):
    base = vars(Scene("ring", "blue", "large", "middle", "sand"))
    drawings = [pixels(draw_scene(Scene(**{**base, name: value}), seed=0)) for value in ATTRIBUTES[name]]
    for i, first in enumerate(drawings):
        for second in drawings[:i]:
            assert (abs(first - second).max(axis=-1) > 40).mean() > 0.02


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draw_scene(SCENE, seed=0)
    scene_captions(SCENE, seed=0)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_captions_are_true_of_their_scene():
    for number, scene in enumerate(sample_scenes(300, seed=6, concentration=0)):
        captions = [*scene_captions(scene, seed=number), generic_caption(scene), specific_caption(scene)]
        assert len(captions) == 7
        assert all(caption_is_true(caption, scene) for caption in captions)


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_a_caption_is_false_of_a_scene_that_contradicts_it(name):
    for number, scene in enumerate(sample_scenes(60, seed=7, concentration=0)):
        value = vars(scene)[name]
        contradiction = Scene(**{**vars(scene), name: other_value(name, value)})
        assert not caption_is_true(specific_caption(scene), contradiction)
        for caption in scene_captions(scene, seed=number):
            stated = any(word in caption.split() for word in (value, SYNONYMS.get(value)))
            assert caption_is_true(caption, contradiction) is not stated


def test_a_left_out_attribute_does_not_make_a_caption_false():
    assert caption_is_true("a star on asphalt", SCENE)
    assert caption_is_true("A photo: one ORANGE star.", SCENE)
    assert not caption_is_true("an orange star and a red circle", SCENE)


def test_a_caption_that_names_no_attribute_is_an_error():
    with pytest.raises(ValueError, match="names no attribute of a scene: 'a zebra'"):
        caption_is_true("a zebra", SCENE)


def test_no_word_belongs_to_two_attributes():
    values = [value for values in ATTRIBUTES.values() for value in values]
    assert len(set(values)) == len(values)


def test_captions_differ_in_detail():
    lengths = {len(caption.split()) for caption in scene_captions(SCENE, count=50, seed=0)}
    assert len(lengths) > 4
    assert generic_caption(SCENE) == "a star"
    assert specific_caption(SCENE) == "a tiny orange star at the top on asphalt"


def test_same_seed_writes_the_same_captions():
    assert scene_captions(SCENE, seed=1) == scene_captions(SCENE, seed=1)
    assert scene_captions(SCENE, seed=1) != scene_captions(SCENE, seed=2)
    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        scene_captions(SCENE, count=0, seed=1)


def test_coco_layout_on_disk(tmp_path):
    scenes = sample_scenes(4, seed=8)
    write_coco_scenes(tmp_path, scenes, split="train2017", captions_per_image=3, seed=9)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    images = [f"train2017/{number:012d}.png" for number in range(1, 5)]
    assert written == ["annotations/captions_train2017.json", *images]  # nothing partial is left behind
    content = json.loads((tmp_path / written[0]).read_text(encoding="utf-8"))
    assert set(content) == {"info", "images", "annotations"}
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, 13))
    for scene, entry in zip(scenes, content["images"], strict=True):
        with Image.open(tmp_path / "train2017" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"])
        assert entry["log_frequency"] == scene_log_frequency(scene)
        captions = [a["caption"] for a in content["annotations"] if a["image_id"] == entry["id"]]
        assert len(captions) == 3
        assert all(caption_is_true(caption, scene) for caption in captions)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    scenes = sample_scenes(3, seed=8)
    for name in ("a", "b"):
        write_coco_scenes(tmp_path / name, scenes, seed=9)
    files = [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    assert len(files[0]) == 4
