"""Image to text: captioners, results files, interruption, and the human yardstick."""

import json
import warnings

import numpy as np
import pytest
import torch
from checkpoints import captioners
from PIL import Image

import clipconformity as cc
from clipconformity.data import merge_results, read_captions, read_results, write_results
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.evaluation import human_spread
from clipconformity.generators import TransformersCaptioner, caption_images, rank_path
from clipconformity.generators.captions import _strip_prefix
from clipconformity.stream.moments import assign_buckets


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_coco_scenes(root, sample_scenes(7, seed=0), seed=0)
    return sorted((root / "val2017").glob("*.png"))


class Counted:
    """Captions that depend on the image alone, counting the images; raises at one of the calls."""

    def __init__(self, fail_at=None, empty=()):
        self.seen, self.calls, self.fail_at, self.empty = 0, 0, fail_at, empty

    def __call__(self, images):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("killed")
        texts = []
        for image in images:
            self.seen += 1
            texts.append("" if self.seen in self.empty else f"a caption of {sum(image.tobytes()) % 99991}\n")
        return texts


def test_a_results_file_is_that_of_coco(paths, tmp_path):
    result = caption_images(Counted(), paths, tmp_path / "r.json", batch_size=3)
    entries = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [entry["image_id"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert all(set(entry) == {"image_id", "caption"} and "\n" not in entry["caption"] for entry in entries)
    assert read_results(tmp_path / "r.json") == result.captions == read_captions(tmp_path / "r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_batch_size_and_processes_change_nothing(paths, tmp_path):
    one = caption_images(Counted(), paths, tmp_path / "1.json", batch_size=1).captions
    assert caption_images(Counted(), paths, tmp_path / "4.json", batch_size=4).captions == one
    for rank in (0, 1):
        caption_images(Counted(), paths, tmp_path / "p.json", rank=rank, world=2)
    assert merge_results([rank_path(tmp_path / "p.json", rank, 2) for rank in (0, 1)], tmp_path / "p.json") == one


@pytest.mark.parametrize("fail_at", [1, 2, 4])
def test_an_interrupted_run_goes_on_and_captions_nothing_twice(paths, tmp_path, fail_at):
    captioner = Counted(fail_at)
    with pytest.raises(RuntimeError, match="killed"):
        caption_images(captioner, paths, tmp_path / "r.json", batch_size=2)
    assert not (tmp_path / "r.json").exists()
    partial = tmp_path / "r.json.partial.jsonl"
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"image_id": 7, "capt')  # cut off in the middle of a line
    result = caption_images(captioner, paths, tmp_path / "r.json", batch_size=3)
    assert captioner.seen == 7
    assert (result.reused, result.generated) == (2 * (fail_at - 1), 7 - 2 * (fail_at - 1))
    assert result.captions == caption_images(Counted(), paths, tmp_path / "whole.json").captions
    again = caption_images(captioner, paths, tmp_path / "r.json")
    assert (again.generated, captioner.seen) == (0, 7)


def test_an_empty_caption_is_an_error_or_left_out_and_counted(paths, tmp_path):
    captioner = Counted(empty=(2,))
    with pytest.raises(ValueError, match="1 of 7 captions are empty; the first images are 2"):
        caption_images(captioner, paths, tmp_path / "r.json")
    result = caption_images(captioner, paths, tmp_path / "r.json", on_empty="skip")
    assert (result.empty, result.generated, len(result.captions.texts)) == ([2], 0, 6)
    assert caption_images(captioner, paths, tmp_path / "r.json", on_empty="skip").empty == [2]


def test_a_file_of_other_images_is_refused(paths, tmp_path):
    caption_images(Counted(), paths, tmp_path / "r.json")
    with pytest.raises(ValueError, match="captioned 3 other images: 1, 2, 3; name another file"):
        caption_images(Counted(), paths[3:], tmp_path / "r.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"rank": 1, "world": 1}, "world: expected at least 2"),
        ({"image_ids": [1, 2]}, "expected one for each of the 7 images, got 2"),
        ({"image_ids": [1, 1, 3, 4, 5, 6, 7]}, "1 image ids come twice: 1"),
        ({"on_empty": "drop"}, "on_empty"),
    ],
)
def test_bad_arguments_are_refused(paths, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        caption_images(Counted(), paths, tmp_path / "r.json", **options)


def test_a_captioner_that_loses_captions_is_found_out(paths, tmp_path):
    with pytest.raises(ValueError, match="returned 1 captions for 7 images"):
        caption_images(lambda images: ["a dog"], paths, tmp_path / "r.json")
    with pytest.raises(ValueError, match="returned a string"):
        caption_images(lambda images: "a cat on", paths, tmp_path / "r.json")
    with pytest.raises(ValueError, match="paths: expected at least one"):
        caption_images(Counted(), [], tmp_path / "r.json")


def test_unknown_duplicate_and_missing_ids_are_refused(tmp_path):
    path = tmp_path / "r.json"
    write_results(path, [5, 6], ["a dog", "a cat"])
    assert read_results(path, [6, 5]).texts == ["a cat", "a dog"]
    with pytest.raises(ValueError, match="1 of 2 image ids are unknown: 6"):
        read_results(path, [5])
    with pytest.raises(ValueError, match="2 of 4 images have no caption: 7, 8"):
        read_results(path, [5, 6, 7, 8])
    assert read_results(path, [5, 7, 6], on_missing="skip").ids == ["5", "6"]
    path.write_text(json.dumps([{"image_id": i, "caption": "a dog"} for i in (5, 6, 5, 5)]), encoding="utf-8")
    with pytest.raises(ValueError, match="1 image ids come twice: 5"):
        read_results(path)
    with pytest.raises(ValueError, match="come twice"):
        write_results(path, [1, 1], ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "broken JSON"),
        ('{"annotations": []}', "expected COCO results"),
        ("[]", "expected COCO results"),
        ('[{"image_id": 1}]', "entry 0: expected image_id and a caption"),
        ('[{"image_id": 1, "caption": " "}]', "entry 0"),
    ],
)
def test_broken_results_are_refused(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_results(path)


def test_results_of_two_processes_that_overlap_are_refused(tmp_path):
    for name in "ab":
        write_results(tmp_path / f"{name}.json", [1, 2], ["a dog", "a cat"])
    with pytest.raises(ValueError, match="2 image ids come twice"):
        merge_results([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="no such results file"):
        merge_results([tmp_path / "x.json"], tmp_path / "c.json")


def test_settings_are_part_of_the_run(paths, tmp_path):
    caption_images(Counted(), paths, tmp_path / "out.json", settings="blip, 3 beams")
    assert caption_images(Counted(), paths, tmp_path / "out.json", settings="blip, 3 beams").reused == 7
    with pytest.raises(ValueError, match="an earlier call captioned with 'blip, 3 beams', this one with 'git'"):
        caption_images(Counted(), paths, tmp_path / "out.json", settings="git")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        caption_images(Counted(), paths, tmp_path)


def test_a_line_cut_inside_a_letter_is_dropped(paths, tmp_path):
    partial = tmp_path / "out.json.partial.jsonl"
    partial.write_bytes('{"image_id": 1, "caption": "caf\u00e9"}\n{"image_id": 2, "caption": "\u00e9'.encode()[:-1])
    assert caption_images(Counted(), paths, tmp_path / "out.json").reused == 1


def test_more_processes_than_images_can_be_merged_and_run_again(paths, tmp_path):
    for _ in range(2):
        for rank in range(3):
            caption_images(Counted(), paths[:2], tmp_path / "out.json", rank=rank, world=3)
    parts = [rank_path(tmp_path / "out.json", rank, 3) for rank in range(3)]
    assert len(merge_results(parts, tmp_path / "all.json").texts) == 2


def test_ids_may_come_as_an_array_and_must_be_numbers_or_strings(paths, tmp_path):
    caption_images(Counted(), paths, tmp_path / "out.json", image_ids=np.arange(7))
    assert read_results(tmp_path / "out.json", torch.arange(7)).ids == list("0123456")
    with pytest.raises(TypeError, match=r"expected whole numbers or strings, got 1\.5 \(float\)"):
        caption_images(Counted(), paths[:1], tmp_path / "b.json", image_ids=[1.5])
    with pytest.raises(ValueError, match="unknown: 0, 1, 2, ...; ids are int and str"):
        read_results(tmp_path / "out.json", list("0123456"))


@pytest.mark.parametrize(
    ("text", "start", "left"),
    [
        ("a photo of a dog", "A photo of", "a dog"),
        ("another dog", "a", "another dog"),
        ("question : what is this? dog", "question : what is this?", "dog"),
        ("a dog", "", "a dog"),
    ],
)
def test_a_prompt_is_cut_off_by_whole_words(text, start, left):
    assert _strip_prefix(text, start) == left


# --- real classes of transformers, from small random configurations --------------------------------------------------


KINDS = ("blip", "git", "vision_encoder_decoder", "llava")
PROMPTED = {"llava": "describe the scene"}  # a LLaVA-like model cannot do without


@pytest.fixture(scope="module")
def small():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties at import
        for name in KINDS:
            getattr(captioners, name)()
    return captioners


@pytest.mark.parametrize("name", KINDS)
def test_real_captioners_give_the_same_captions_in_any_batch(small, paths, tmp_path, name):
    model, processor, tokenizer = getattr(small, name)()
    captioner = TransformersCaptioner(
        model, processor, tokenizer=tokenizer, prompt=PROMPTED.get(name), max_new_tokens=6
    )
    one = caption_images(captioner, paths, tmp_path / "1.json", batch_size=1)
    four = caption_images(captioner, paths, tmp_path / "4.json", batch_size=4)
    assert one.captions == four.captions
    assert all(one.captions.texts)


@pytest.mark.parametrize("name", ["blip", "git"])
def test_a_prompt_is_not_part_of_the_caption(small, paths, name):
    model, processor, tokenizer = getattr(small, name)()
    captioner = TransformersCaptioner(
        model, processor, tokenizer=tokenizer, prompt="a picture of", max_new_tokens=6, options={"num_beams": 2}
    )
    texts = captioner([Image.open(path).convert("RGB") for path in paths[:2]])
    assert len(texts) == 2
    assert not any(text.startswith("a picture of") for text in texts)


@pytest.mark.parametrize("prompt", ["describe the scene", "<image> a red circle"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_llava_caption_is_what_comes_after_the_prompt(small, paths, prompt, beams):
    model, processor, _ = small.llava()
    options = {"num_beams": beams, "do_sample": False}
    captioner = TransformersCaptioner(model, processor, prompt=prompt, max_new_tokens=6, options=options)
    text = prompt if "<image>" in prompt else f"<image> {prompt}"  # what its chat template makes of it
    assert captioner.prompt == text
    images = [Image.open(path).convert("RGB") for path in paths[:4]]
    found = captioner(images)
    for image, caption in zip(images, found, strict=True):  # by hand: the model's tokens behind those of the prompt
        inputs = processor(images=image, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, **options)[0, inputs["input_ids"].shape[1] :]
        assert caption == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert len(set(found)) > 1  # it looks at the image
    assert processor.tokenizer.padding_side == "left"  # where prompts differ in length, all end beside the caption


# --- the human yardstick ---------------------------------------------------------------------------------------------


def references(images=300, per_image=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(images, 1, 16, generator=generator)
    rows = 1.5 + centre + 0.7 * torch.randn(images, per_image, 16, generator=generator)
    return rows.view(-1, 16), torch.arange(images).repeat_interleave(per_image)


def test_humans_are_as_typical_as_each_other():
    embeddings, groups = references()
    spread = human_spread(embeddings, groups)
    assert spread.conformity_kl.shape == (5,)
    assert float(spread.conformity_kl.mean()) < 0.03
    assert spread.typicality_shift.abs().max() < 0.25
    assert ((spread.spread_ratio - 1).abs() < 0.15).all()


def test_a_generic_captioner_lies_outside_the_human_spread():
    embeddings, groups = references()
    spread = human_spread(embeddings, groups)
    machine = embeddings.clone().view(300, 5, 16)
    machine[:, 0] = machine[:, 0].lerp(embeddings.mean(0), 0.5)
    import clipconformity as cc

    metrics = cc.ConformityMetrics(cc.ReferenceSet.fit(embeddings, groups=groups))
    metrics.update(machine[:, 0].contiguous())
    values = metrics.compute()
    assert values["typicality_shift"] > 3 * spread.typicality_shift.abs().max()
    assert values["conformity_kl"] > 3 * spread.conformity_kl.max()
    assert values["self_conformity_mean"] > spread.self_conformity.max()


def test_a_fold_is_one_caption_against_the_rest():
    embeddings, groups = references(images=60, per_image=2)
    spread = human_spread(embeddings, groups.tolist(), seed=1)
    assert len(spread.conformity_kl) == 2
    # Together the two folds are every caption once: the mean of cos over all pairs of the folds is symmetric.
    assert human_spread(embeddings, groups, seed=1).self_conformity.equal(spread.self_conformity)
    weights = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert abs(float(weights @ spread.self_conformity) - float(cc.functional.self_conformity(embeddings))) < 0.02


def test_every_fold_agrees_with_brute_force():
    embeddings, groups = references(images=40, per_image=3)
    spread = human_spread(embeddings, groups, seed=5)
    draw = np.random.default_rng(5)
    orders = np.stack([3 * image + draw.permutation(3) for image in range(40)])  # (40, 3) rows
    cosine = torch.nn.functional.normalize(embeddings.double(), dim=1)
    cosine = cosine @ cosine.T
    bucket = assign_buckets(groups)
    for fold in range(3):
        left = torch.tensor(orders[:, fold])
        others = torch.tensor(np.delete(orders, fold, axis=1).ravel())
        across = (bucket[left][:, None] != bucket[others][None]).double()  # no caption against its own image's
        within = (bucket[others][:, None] != bucket[others][None]).double()
        pairs, among = cosine[left][:, others] * across, cosine[others][:, others] * within
        found, typical = pairs.sum(1) / across.sum(1), among.sum(1) / within.sum(1)
        shift = (pairs.sum() / across.sum() - among.sum() / within.sum()) / typical.std()
        assert float(spread.typicality_shift[fold]) == pytest.approx(float(shift), rel=1e-4)
        assert float(spread.spread_ratio[fold]) == pytest.approx(float(found.std() / typical.std()), rel=1e-4)
        apart = (bucket[left][:, None] != bucket[left][None]).double()
        alike = (cosine[left][:, left] * apart).sum() / apart.sum()
        assert float(spread.self_conformity[fold]) == pytest.approx(float(alike), rel=1e-4)
        varied = (1 - float(alike)) / (1 - float(among.sum() / within.sum()))
        assert float(spread.variety_ratio[fold]) == pytest.approx(varied, rel=1e-4)


@pytest.mark.slow
def test_one_more_person_lies_in_the_range_told_of_them():
    inside = {"range": 0, "folds": 0}
    for seed in range(60):
        rows, groups = references(images=60, per_image=6, seed=seed)
        rows = rows.view(60, 6, -1)
        people, person = rows[:, :5].reshape(300, -1), rows[:, 5]
        spread = human_spread(people, groups.view(60, 6)[:, :5].flatten(), seed=seed)
        reference = cc.ReferenceSet.fit(people, groups=groups.view(60, 6)[:, :5].flatten())
        metric = cc.Conformity(reference)
        metric.update(person, groups=groups.view(60, 6)[:, 5])
        shift = float(metric.compute()["typicality_shift"])
        low, high = spread.one_more()
        inside["range"] += low <= shift <= high
        inside["folds"] += float(spread.typicality_shift.min()) <= shift <= float(spread.typicality_shift.max())
    assert inside["range"] >= 52  # 95% nominal: below 52 of 60 in one of 100 cases
    assert inside["folds"] < 52  # why the folds' own range will not do


def test_a_range_needs_two_folds():
    embeddings, groups = references(images=20, per_image=3)
    with pytest.raises(ValueError, match="two folds at least"):
        human_spread(embeddings, groups, folds=1).one_more()
    with pytest.raises(ValueError, match="expected a field"):
        human_spread(embeddings, groups).one_more("spread")


@pytest.mark.parametrize(
    ("per_image", "folds", "message"),
    [(1, None, "needs two captions"), (3, 4, "4 folds; one image has 3")],
)
def test_too_few_captions_an_image_are_refused(per_image, folds, message):
    embeddings, groups = references(images=20, per_image=per_image)
    with pytest.raises(ValueError, match=message):
        human_spread(embeddings, groups, folds=folds)
    with pytest.raises(ValueError, match=r"expected embeddings \(N, D\) and N groups"):
        human_spread(embeddings, groups[:-1])
