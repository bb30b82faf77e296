"""Text to image: what a run depends on and what not, interruption, black images, and what is refused."""

import functools
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import pipelines
from checkpoints.parts import image_processor
from PIL import Image

from clipconformity.data import list_images
from clipconformity.generators import generate_images, read_manifest, sample_seed

PROMPTS = ["a red circle", "a blue square on snow", "there is a star", "a tiny green ring", "a heart, émail"]


def noise(prompts, seeds):
    """Images that depend on prompt and seed alone."""
    return [
        Image.fromarray(np.random.default_rng([seed, len(prompt)]).integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


class Counted:
    """The same, counting what was asked; raises at one of the calls, and black for some prompts."""

    def __init__(self, fail_at=None, black=()):
        self.asked, self.calls, self.fail_at, self.black = [], 0, fail_at, black

    def __call__(self, prompts, seeds):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("killed")
        self.asked += zip(prompts, seeds, strict=True)
        return [
            Image.new("RGB", (8, 8)) if prompt in self.black else image
            for prompt, image in zip(prompts, noise(prompts, seeds), strict=True)
        ]


def pixels(folder):
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in list_images(folder)}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_run_does_not_depend_on_the_batch_size_or_the_number_of_processes(tmp_path):
    generate_images(noise, PROMPTS, tmp_path / "a", batch_size=1)
    generate_images(noise, PROMPTS, tmp_path / "b", batch_size=4)
    for rank in (0, 1):
        share = generate_images(noise, PROMPTS, tmp_path / "c", batch_size=2, rank=rank, world=2)
        assert share.generated == len(share.paths) == (3, 2)[rank]
    assert same(pixels(tmp_path / "a"), pixels(tmp_path / "b"))
    assert same(pixels(tmp_path / "a"), pixels(tmp_path / "c"))
    assert read_manifest(tmp_path / "a") == read_manifest(tmp_path / "c")


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_an_interrupted_run_goes_on_and_makes_nothing_twice(tmp_path, fail_at):
    generate_images(noise, PROMPTS, tmp_path / "whole")
    generator = Counted(fail_at)
    with pytest.raises(RuntimeError, match="killed"):
        generate_images(generator, PROMPTS, tmp_path / "a", batch_size=2)
    before = len(generator.asked)
    result = generate_images(generator, PROMPTS, tmp_path / "a", batch_size=3)
    assert len(generator.asked) == len(set(generator.asked)) == len(PROMPTS)
    assert (result.reused, result.generated) == (before, len(PROMPTS) - before)
    assert same(pixels(tmp_path / "a"), pixels(tmp_path / "whole"))
    assert read_manifest(tmp_path / "a") == read_manifest(tmp_path / "whole")
    again = generate_images(generator, PROMPTS, tmp_path / "a")
    assert (again.generated, again.reused, len(generator.asked)) == (0, 5, 5)


def test_a_run_of_one_process_goes_on_with_two(tmp_path):
    generator = Counted(fail_at=2)
    with pytest.raises(RuntimeError, match="killed"):
        generate_images(generator, PROMPTS, tmp_path, batch_size=2)
    for rank in (0, 1):
        generate_images(generator, PROMPTS, tmp_path, batch_size=2, rank=rank, world=2)
    assert len(generator.asked) == len(set(generator.asked)) == len(read_manifest(tmp_path)) == 5


def test_what_an_interruption_leaves_of_a_line_or_a_file_does_no_harm(tmp_path):
    generate_images(noise, PROMPTS[:3], tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    (tmp_path / ".000003_0.png.tmp123.png").write_bytes(b"half")
    assert len(read_manifest(tmp_path)) == 3  # the images themselves say what they are
    assert generate_images(noise, PROMPTS, tmp_path).reused == 3
    lines = manifest.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS
    assert [entry["prompt"] for entry in read_manifest(tmp_path)] == PROMPTS


def test_prompt_and_seed_are_beside_the_image_and_in_it(tmp_path):
    result = generate_images(noise, PROMPTS, tmp_path, seed=7, images_per_prompt=2)
    entries = read_manifest(tmp_path)
    assert len(entries) == len(result.paths) == 10
    assert entries[9]["prompt"] == PROMPTS[4]
    assert entries[9]["seed"] == sample_seed(7, 4, 1)
    inside = json.loads(Image.open(result.paths[9]).text["clipconformity"])
    assert inside | {"file": result.paths[9].name} == entries[9]


def test_seeds_differ_among_prompts_copies_and_runs_and_are_exact_in_json():
    seeds = {sample_seed(s, p, c) for s in range(5) for p in range(50) for c in range(4)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**53


def test_black_images_are_counted_and_kept(tmp_path):
    result = generate_images(Counted(black=PROMPTS[1:3]), PROMPTS, tmp_path)
    assert [path.name for path in result.black] == ["000001_0.png", "000002_0.png"]
    assert len(result.paths) == len(list_images(tmp_path)) == 5


def test_black_images_are_excluded_by_choice_and_not_made_again(tmp_path):
    generator, seen = Counted(black=PROMPTS[1:3]), []
    result = generate_images(generator, PROMPTS, tmp_path, on_black="exclude", on_images=seen.extend)
    assert len(result.black) == 2
    assert len(seen) == 3
    assert list_images(tmp_path) == result.paths == [tmp_path / f"00000{n}_0.png" for n in (0, 3, 4)]
    assert sum(entry["black"] for entry in read_manifest(tmp_path)) == 2
    again = generate_images(generator, PROMPTS, tmp_path, on_black="keep")
    assert (again.generated, len(again.paths), len(list_images(tmp_path)), len(generator.asked)) == (0, 5, 5, 5)


def test_a_running_score_sees_every_image_once_also_after_an_interruption(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        generate_images(Counted(fail_at=2), PROMPTS, tmp_path, batch_size=2)
    seen = []
    generate_images(noise, PROMPTS, tmp_path, batch_size=2, on_images=seen.extend)
    assert {image.tobytes() for image in seen} == {p.astype(np.uint8).tobytes() for p in pixels(tmp_path).values()}
    assert len(seen) == 5


def test_images_of_another_run_are_refused(tmp_path):
    generate_images(noise, PROMPTS, tmp_path)
    with pytest.raises(ValueError, match="is of another run: its seed is"):
        generate_images(noise, PROMPTS, tmp_path, seed=1)
    with pytest.raises(ValueError, match="is of another run: its prompt is 'a red circle', here it is 'a heart"):
        generate_images(noise, PROMPTS[::-1], tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "000005_0.png")
    with pytest.raises(ValueError, match=r"000005_0\.png: no image of generate_images"):
        generate_images(noise, [*PROMPTS, "a bar"], tmp_path)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        (["a", " ", "b", ""], {}, ValueError, "2 of 4 are empty, at places 1, 3"),
        ([], {}, ValueError, "at least one"),
        ("a dog", {}, TypeError, "list of strings"),
        (["a", 3], {}, TypeError, "got int at place 1"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        (["a"], {"rank": 2, "world": 2}, ValueError, "world: expected at least 3"),
        (["a"], {"on_black": "drop"}, ValueError, "on_black: expected"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path, prompts, options, error, message):
    generator = Counted()
    with pytest.raises(error, match=message):
        generate_images(generator, prompts, tmp_path / "a", **options)
    assert generator.asked == []


def test_a_generator_that_loses_images_is_found_out(tmp_path):
    with pytest.raises(ValueError, match="returned 4 images for 5 prompts"):
        generate_images(lambda prompts, seeds: noise(prompts, seeds)[:-1], PROMPTS, tmp_path)


def test_a_pipeline_that_takes_no_list_of_generators_gets_one_prompt_at_a_time(tmp_path):
    sizes = []

    def pipeline(prompt: list[str], generator: torch.Generator):
        sizes.append((len(prompt), isinstance(generator, torch.Generator)))
        return [torch.rand(3, 8, 8, generator=generator)]

    generate_images(pipeline, PROMPTS, tmp_path, batch_size=4)
    assert sizes == [(1, True)] * 5


def test_options_of_a_function_are_handed_on_and_part_of_the_run(tmp_path):
    def shaded(prompts, seeds, grey):
        return [Image.new("L", (8, 8), grey) for _ in prompts]

    generate_images(shaded, PROMPTS, tmp_path, options={"grey": 7})
    assert {Image.open(path).getpixel((0, 0)) for path in list_images(tmp_path)} == {(7, 7, 7)}
    with pytest.raises(ValueError, match="is of another run: its settings"):
        generate_images(shaded, PROMPTS, tmp_path, options={"grey": 8})
    assert generate_images(functools.partial(shaded, grey=7), PROMPTS, tmp_path).reused == len(PROMPTS)
    with pytest.raises(ValueError, match="is of another run: its settings"):
        generate_images(functools.partial(shaded, grey=8), PROMPTS, tmp_path)


def test_options_are_part_of_the_run(tmp_path):
    def pipeline(prompt, generator, strength=1.0):
        return noise(prompt, [1])

    generate_images(pipeline, PROMPTS, tmp_path, options={"strength": 0.5})
    with pytest.raises(ValueError, match="its settings is"):
        generate_images(pipeline, PROMPTS, tmp_path, options={"strength": 0.6})


def painted(prompts, seeds, **options):
    return noise(prompts, seeds)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": {"scale": 0.1}}, {"a": {"scale": 1.0}}),
        ({"a": np.int64(2)}, {"a": np.int64(50)}),
        ({"a": np.zeros(3)}, {"a": np.ones(3)}),
        ({"a": torch.tensor([2**24])}, {"a": torch.tensor([2**24 + 1])}),
        ({"a": Image.new("L", (2, 2), 0)}, {"a": Image.new("L", (2, 2), 1)}),
        ({"a": Path("x")}, {"a": Path("y")}),
        ({"a": torch.float16}, {"a": torch.float32}),
        ({"a": {1, 2}}, {"a": {1, 3}}),
    ],
)
def test_options_of_every_kind_are_part_of_the_run(tmp_path, first, second):
    generate_images(painted, PROMPTS, tmp_path, options=first)
    assert generate_images(painted, PROMPTS, tmp_path, options=dict(first)).reused == len(PROMPTS)
    with pytest.raises(ValueError, match="is of another run: its settings"):
        generate_images(painted, PROMPTS, tmp_path, options=second)


def test_prompts_may_come_as_any_iterable(tmp_path):
    assert len(generate_images(noise, iter(PROMPTS), tmp_path / "a").paths) == 5
    assert len(generate_images(noise, np.array(PROMPTS), tmp_path / "b").paths) == 5


def test_a_callable_that_hides_what_it_takes_is_refused(tmp_path):
    with pytest.raises(TypeError, match="expected a pipeline with prompt and generator, or a function of prompts"):
        generate_images(lambda *a, **k: noise(*a), PROMPTS, tmp_path)


def test_prompts_and_captions_keep_what_only_looks_like_a_line_break(tmp_path):
    strange = ["one\u2028two", "three\x85four", "five\nsix", "lone \ud83d half"]
    generate_images(noise, strange, tmp_path)
    assert [entry["prompt"] for entry in read_manifest(tmp_path)] == strange
    assert generate_images(noise, strange, tmp_path).reused == 4


def test_a_manifest_tells_of_the_images_that_are_there(tmp_path):
    generate_images(noise, PROMPTS, tmp_path, seed=1)
    for path in list_images(tmp_path):
        path.unlink()
    for rank in (0, 1):
        generate_images(noise, PROMPTS[::-1], tmp_path, seed=2, rank=rank, world=2)
    assert [entry["prompt"] for entry in read_manifest(tmp_path)] == PROMPTS[::-1]
    assert read_manifest(tmp_path)[0]["seed"] == sample_seed(2, 0)


def test_a_shorter_run_in_the_folder_of_a_longer_is_refused(tmp_path):
    generate_images(noise, PROMPTS, tmp_path)
    with pytest.raises(ValueError, match="holds 3 images of a longer run, such as 000002_0.png"):
        generate_images(noise, PROMPTS[:2], tmp_path)


# --- real classes of diffusers, from small random configurations -----------------------------------------------------


@pytest.fixture(scope="module")
def small():
    pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties at import
        import diffusers.pipelines

        for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "UnCLIPPipeline"):
            getattr(diffusers.pipelines, name)  # each is imported when it is named
    return pipelines


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stable_diffusion", {"num_inference_steps": 3}),
        ("stable_diffusion_xl", {"num_inference_steps": 3}),
        (
            "unclip",
            {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2},
        ),
    ],
)
def test_real_pipelines_give_the_same_images_however_they_are_split_and_stopped(small, tmp_path, name, options):
    pipeline = getattr(small, name)()
    whole = generate_images(pipeline, PROMPTS, tmp_path / "1", batch_size=1, options=options)
    assert len({Image.open(path).tobytes() for path in whole.paths}) == 5
    generate_images(pipeline, PROMPTS, tmp_path / "4", batch_size=4, options=options)
    for rank in (0, 1):
        generate_images(pipeline, PROMPTS, tmp_path / "2p", batch_size=1, rank=rank, world=2, options=options)
    calls = []

    class Stopped:
        def __call__(self, prompt: list[str], generator: list[torch.Generator], **more):
            calls.append(prompt)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return pipeline(prompt=prompt, generator=generator, **more)

    for _ in range(2):
        try:
            generate_images(Stopped(), PROMPTS, tmp_path / "stopped", batch_size=2, options=options)
        except KeyboardInterrupt:
            continue
    assert [len(prompt) for prompt in calls] == [2, 2, 2, 1]
    one = pixels(tmp_path / "1")
    assert same(one, pixels(tmp_path / "2p"))
    for other in (pixels(tmp_path / "4"), pixels(tmp_path / "stopped")):  # batched matrix products round otherwise
        assert one.keys() == other.keys()
        difference = np.concatenate([abs(one[name] - other[name]).ravel() for name in one])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_a_wrapped_pipeline_is_seen_through(small, tmp_path):
    first, second = small.stable_diffusion(), small.stable_diffusion(seed=1)
    options = {"num_inference_steps": 2}
    generate_images(functools.partial(first, num_inference_steps=2), PROMPTS[:2], tmp_path)
    assert generate_images(first, PROMPTS[:2], tmp_path, options=options).reused == 2
    assert generate_images(first.__call__, PROMPTS[:2], tmp_path, options=options).reused == 2
    for other in (functools.partial(second, **options), functools.partial(first, num_inference_steps=3)):
        with pytest.raises(ValueError, match="is of another run: its settings"):
            generate_images(other, PROMPTS[:2], tmp_path)
    for name, instead in (("generator", "seed"), ("num_images_per_prompt", "images_per_prompt")):
        with pytest.raises(ValueError, match=f"{name}.*give {instead} instead"):
            generate_images(first, PROMPTS[:2], tmp_path, options={name: 1})


def test_a_negative_prompt_holds_for_every_prompt(small, tmp_path):
    options = {"num_inference_steps": 2, "negative_prompt": "blurry"}
    made = generate_images(small.stable_diffusion(), PROMPTS[:3], tmp_path, batch_size=2, options=options)
    assert len(made.paths) == 3


def test_what_the_real_safety_checker_blacks_out_is_counted_and_excluded(small, tmp_path):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8
    )
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=16)).eval()
    pipeline = small.stable_diffusion()
    pipeline.register_modules(safety_checker=checker, feature_extractor=image_processor())
    options = {"num_inference_steps": 2}
    for threshold, black in ((2.0, 0), (-2.0, 2)):  # a cosine is never above 2, and always above -2
        with torch.no_grad():
            checker.concept_embeds_weights.fill_(threshold)
            checker.special_care_embeds_weights.fill_(2.0)
        folder = tmp_path / f"{threshold}"
        result = generate_images(pipeline, PROMPTS[:2], folder, options=options, on_black="exclude")
        assert len(result.black) == black
        assert len(result.paths) == len(list_images(folder) if not black else []) == 2 - black


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_images_of_another_checkpoint_adapter_or_scheduler_are_refused(small, tmp_path):
    from diffusers import EulerDiscreteScheduler

    def run(pipeline):
        return generate_images(pipeline, PROMPTS[:2], tmp_path, options={"num_inference_steps": 2})

    run(small.stable_diffusion())
    assert run(small.stable_diffusion()).reused == 2  # the same weights, loaded anew
    with pytest.raises(ValueError, match="is of another run: its settings"):
        run(small.stable_diffusion(seed=1))
    tuned = small.stable_diffusion()
    with torch.no_grad():
        tuned.unet.conv_out.bias[0] += 1e-4
    with pytest.raises(ValueError, match="is of another run: its settings"):
        run(tuned)
    sampled = small.stable_diffusion()
    sampled.scheduler = EulerDiscreteScheduler.from_config(sampled.scheduler.config)
    with pytest.raises(ValueError, match="is of another run: its settings"):
        run(sampled)
    last = small.stable_diffusion()
    with torch.no_grad():
        last.unet.conv_in.weight[-1, -1, -1, -1] += 1e-4
    with pytest.raises(ValueError, match="is of another run: its settings"):
        run(last)

    class OtherSteps(type(sampled.scheduler)):
        """Another scheduler with the same config."""

    twin = small.stable_diffusion()
    twin.scheduler = OtherSteps.from_config(sampled.scheduler.config)
    generate_images(sampled, PROMPTS[:1], tmp_path / "twin", options={"num_inference_steps": 2})
    with pytest.raises(ValueError, match="is of another run: its settings"):
        generate_images(twin, PROMPTS[:1], tmp_path / "twin", options={"num_inference_steps": 2})
    offloaded = small.stable_diffusion()
    offloaded.unet.to("meta")  # as sequential offloading leaves it; nothing can be made, but it can be told apart
    with pytest.raises(ValueError, match="is of another run: its settings"):
        run(offloaded)


@pytest.mark.parametrize("name", ["stable_diffusion", "unclip"])
def test_the_noise_of_a_prompt_is_the_same_bit_for_bit_in_any_batch(small, name, monkeypatch, tmp_path):
    pipeline, drawn = getattr(small, name)(), {}
    module = sys.modules[type(pipeline).__module__]
    original = module.randn_tensor

    def recorded(shape, *, generator, **more):
        value = original(shape, generator=generator, **more)
        drawn[folder].append(value)
        return value

    monkeypatch.setattr(module, "randn_tensor", recorded)
    options = {"num_inference_steps": 1} if name == "stable_diffusion" else {"decoder_num_inference_steps": 2}
    if name == "unclip":
        options |= {"prior_num_inference_steps": 2, "super_res_num_inference_steps": 2}
    for folder, size in (("one", 1), ("all", 3)):
        drawn[folder] = []
        generate_images(pipeline, PROMPTS[:3], tmp_path / folder, batch_size=size, options=options)
    kinds = len(drawn["all"])  # the kinds of noise: prior, decoder, super resolution
    assert kinds == (1 if name == "stable_diffusion" else 3)
    for kind, together in enumerate(drawn["all"]):
        assert torch.equal(together, torch.cat(drawn["one"][kind::kinds]))
