"""Captioners: what the examples make of saved small checkpoints, as they load those of the hub."""

import json

import pytest
import torch
from checkpoints import captioners
from helpers import check_score
from PIL import Image

from clipconformity.data import read_results, write_results
from clipconformity.demo import generic_caption, sample_scenes, specific_caption


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def shown(material):
    common = ("--reference", material.text_reference, "--encoder", "tiny", "--device", "cpu")
    return ("--images", material.images, *common, "--limit", 24)


def blip(material, model, *more):
    return ("blip", *shown(material), "--model", model, "--max-tokens", 8, *more)


@pytest.mark.parametrize("kind", ["blip", "git", "vision_encoder_decoder", "llava"])
def test_a_captioner_is_known_by_its_checkpoint_and_scored(run, material, checkpoint, tmp_path, kind, monkeypatch):
    given, found = blip(material, checkpoint(kind), "-o", tmp_path), "24 images captioned, 0 found"
    if kind == "git":  # two processes share the images, and the last joins the captions
        for rank in (1, 0):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
            assert not (tmp_path / "captions.json").exists()
            assert "12 images captioned, 0 found" in run(*given).stdout
        assert not (tmp_path / "score.json").exists()
        monkeypatch.delenv("RANK")
        monkeypatch.delenv("WORLD_SIZE")
        found = "0 images captioned, 24 found"
    said = run(*given).stdout
    assert found in said
    captions = read_results(tmp_path / "captions.json", range(1, 61), on_missing="skip").texts
    assert 12 < len(captions) <= 24
    assert len(set(captions)) > 1 or kind in ("blip", "git")  # the others look at the image
    values = read(tmp_path / "score.json")
    check_score(values, len(captions))
    assert values["verdict"]["typical"] in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert kind in page
    assert str(checkpoint(kind).parent) not in page


def test_caption_reward_tells_generic_from_over_specific(run, material, tmp_path):
    scenes = sample_scenes(60, seed=0)
    for name, caption in (("generic", generic_caption), ("specific", specific_caption)):
        write_results(tmp_path / f"{name}.json", list(range(1, 61)), [caption(scene) for scene in scenes])
    files = [f"{name}={tmp_path / name}.json" for name in ("generic", "specific")]
    given = ("--reference", material.text_reference, "--captions", material.captions, "--encoder", "tiny")
    said = run("caption_reward", *files, *given, "--device", "cpu", "-o", tmp_path).stdout
    content = read(tmp_path / "comparison.json")
    assert list(content["runs"]) == ["generic", "specific"]
    for values in content["runs"].values():
        check_score(values, 60)
    assert len(content["human"]["conformity_kl"]) == 5
    assert content["beside_people"]["generic"].startswith("more typical than people")
    assert content["beside_people"]["specific"].startswith("less typical than people")
    assert "generic is more typical than specific" in said
    with Image.open(tmp_path / "map.png") as image:
        assert min(image.size) > 200
    assert "specific" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "plain.txt").write_text("a circle\na square\n", encoding="utf-8")
    plain = (*given[:2], "--captions", tmp_path / "plain.txt", "-o", tmp_path / "out")
    assert "names no images" in run("caption_reward", *files, *plain, status=2).stderr


# --- ClipCap ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Files of both mappers, named and shaped as the published ones."""
    root = tmp_path_factory.mktemp("weights")
    model, _ = captioners.gpt2()
    for mapper in ("mlp", "transformer"):
        torch.save(captioners.clipcap_weights(mapper, model, clip_dim=64, length=4), root / f"{mapper}.pt")
    return root


def clipcap(material, checkpoint, *more):
    given = (*shown(material), "--clip", "tiny", "--model", checkpoint("gpt2"), "--max-tokens", 6, "--beams", 1, 2)
    return ("clipcap", *given, *more)


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_published_clipcap_files_are_loaded_and_their_searches_compared(
    run, material, checkpoint, weights, tmp_path, mapper
):
    own = ("--mapper", mapper, "--mapper-weights", weights / f"{mapper}.pt", "--prefix-length", 4)
    said = run(*clipcap(material, checkpoint, *own, "-o", tmp_path)).stdout
    content = read(tmp_path / "comparison.json")
    assert list(content["runs"]) == ["greedy", "beam-2"]
    for name, values in content["runs"].items():
        found = read_results(tmp_path / f"{name}.json")
        check_score(values, len(found.texts))
        assert len(set(found.texts)) > 5  # the prefix depends on the image
        assert name in said
    assert "beam-2" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mapper", "transformer", "--prefix-length", 4), "other weights than expected; missing"),
        (("--prefix-length", 5), "expected weights of this mapper, prefix length, CLIP and GPT-2"),
        (("--prefix-length", 4, "--mapper-weights", "no-weights.pt"), "expected weights of this mapper"),
        (("--beams", 2, 2), "two different numbers"),
    ],
)
def test_clipcap_refuses_other_weights(run, material, checkpoint, weights, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-weights.pt").write_bytes(b"none")
    given = clipcap(material, checkpoint, "--mapper-weights", weights / "mlp.pt", *more)
    assert message in run(*given, "-o", tmp_path, status=2).stderr


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_clipcap_goes_on_greedily_to_the_first_full_stop(example, mapper):
    gpt, tokenizer = captioners.gpt2()
    torch.manual_seed(7)
    model = example("clipcap").ClipCap(gpt, mapper, clip_dim=6, prefix_length=4, layers=2).eval()
    embeddings = 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def by_hand(embedding, stop):
        given, found = model.clip_project(embedding[None]).view(1, 4, -1), []
        while len(found) < 12 and (not found or found[-1] != stop):
            found.append(int(gpt(inputs_embeds=given).logits[0, -1].argmax()))
            given = torch.cat([given, gpt.transformer.wte(torch.tensor([[found[-1]]]))], dim=1)
        return found

    with torch.no_grad():
        for weight in model.clip_project.parameters():
            weight.mul_(4)  # so that embeddings make a difference
        endless = [by_hand(embedding, None) for embedding in embeddings]
        firsts = {token: {row.index(token) if token in row else 12 for row in endless} for token in range(256)}
        stop = max(firsts, key=lambda token: len(firsts[token]))  # an ordinary token, come to at different places
        wanted = [by_hand(embedding, stop) for embedding in embeddings]
    assert len({len(tokens) for tokens in wanted}) > 1
    found = model.caption(embeddings, tokenizer, stop, beams=1, max_new_tokens=12)
    assert found == [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in wanted]
    together = model.caption(embeddings, tokenizer, stop, beams=3, max_new_tokens=12)
    alone = [model.caption(one[None], tokenizer, stop, beams=3, max_new_tokens=12)[0] for one in embeddings]
    assert together == alone
