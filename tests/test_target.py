"""Targets against the truth: how much the right things move, how little the others, and what the edge looks like."""
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from flowmag_nb import segment
from flowmag_nb.assets import get_asset
from flowmag_nb.flow import load_flow
from flowmag_nb.magnifiers import load_magnifier
from flowmag_nb.magnifiers.lagrangian import line_search
from flowmag_nb.magnify import magnify_video
from flowmag_nb.metrics import achieved_magnification, photometric_gain
from flowmag_nb.segment import SAM_ASSETS, Segmenter, box_mask, load_sam
from flowmag_nb.target import Target, alpha_map, cut_out, dilate_mask, magnify_target
from flowmag_nb.video import Video, to_tensor
from flowmag_nb.warp import gradients, invert, warp

SIZE, SIDE = (120, 232), 48
CORNERS = [(20, 36), (92, 36), (164, 36)]            # x, y of three squares
MOTIONS = [(0.5, 0.), (0.3, 0.4), (-0.4, 0.3)]       # px per second, as all of them move


def judge(): return load_flow("clg", smoothness=300., warps=4)


def texture(x, y, seed):
    """Waves of 5 to 20 px in all directions, exact at any position."""
    rng = np.random.default_rng(seed)
    waves = [np.sin((np.cos(a)*x + np.sin(a)*y) * 2*np.pi/p + o) for a, p, o in zip(rng.uniform(0, 7, 9), rng.uniform(5, 20, 9), rng.uniform(0, 7, 9))]
    return 0.5 + 0.07 * sum(waves)


def picture(shifts):
    """A wall and three squares, each shifted by (x, y) px, with edges one pixel wide: (h, w, 3)."""
    y, x = np.mgrid[:SIZE[0], :SIZE[1]].astype(float)
    image = 0.6 * texture(x, y, 0)
    for seed, ((left, top), (dx, dy)) in enumerate(zip(CORNERS, shifts), 1):
        u, v = x - dx - left, y - dy - top
        inside = np.minimum(np.minimum(u + .5, SIDE - .5 - u).clip(0, 1), np.minimum(v + .5, SIDE - .5 - v).clip(0, 1))
        image = image + inside * (0.2 + 0.8 * texture(u, v, seed) - image)
    return np.repeat(image.clip(0, 1)[..., None], 3, -1)


def squares(): return torch.stack([box_mask((x, y, SIDE, SIDE), *SIZE) for x, y in CORNERS])


def clip(times=(0, 0.5, 1)): return Video(np.stack([picture([(t*dx, t*dy) for dx, dy in MOTIONS]) for t in times]))


def achieved(net, result, moves, inside):
    """Magnification of each object in the last frame, against its true motion."""
    first, last = (to_tensor(frame) for frame in (result.source.frame(0), list(result.video)[-1]))
    found = net(first, last)
    truth = torch.zeros_like(found)
    for mask, move in zip(inside, moves): truth[0, :, mask] = torch.tensor(move)[:, None]
    return [achieved_magnification(found, truth, mask[None].float()).item() for mask in inside], found


@torch.no_grad()
def test_three_objects_each_as_it_should(tmp_path):
    """Twelve times, five times, and left alone though it moves: all within 10 %; the wall stays."""
    targets = [Target(alpha, box=(x, y, SIDE, SIDE)) for alpha, (x, y) in zip((12, 5), CORNERS)]
    result = magnify_target(clip(), tmp_path / "out.mkv", targets, segment="none", progress=False)
    inside = ~dilate_mask(~squares(), 7)
    ratios, found = achieved(judge(), result, MOTIONS, inside)
    print("achieved", [round(r, 2) for r in ratios])
    assert ratios == pytest.approx([12, 5, 1], rel=0.1)
    wall = ~dilate_mask(squares().any(0), 20)
    assert found.norm(dim=1)[0][wall].mean() < 0.3


@torch.no_grad()
def test_no_seam():
    """Across the feathered edge of a mask inside a moving thing, slopes are no steeper than without the mask."""
    y, x = np.mgrid[:120, :200].astype(float)
    film = Video(np.stack([np.repeat(texture(x - s, y, 3)[..., None], 3, -1).clip(0, 1) for s in (0, 0.8)]))
    mask = box_mask((60, 30, 80, 60), 120, 200)
    edge = dilate_mask(mask, 16) & ~mask
    everywhere = magnify_video(film, alpha=8., progress=False)
    steep = lambda result: sum(g.square() for g in gradients(to_tensor(list(result.video)[-1]))).mean(1)[0].sqrt()[edge]
    ratios = {f: (steep(magnify_target(film, targets=Target(8, mask=mask), feather=f, progress=False)).mean() / steep(everywhere).mean()).item() for f in (0., 12., 40.)}
    print("slopes at the edge, by feather", ratios)
    assert ratios[12.] < 1.1 and ratios[40.] < 1.05


CATS = {"black": (25, 210, 450, 325), "white": (160, 185, 750, 455)}  # boxes as a hand would draw them


@pytest.fixture(scope="module")
def cats(mirror):
    """The twenty frames, and the published masks of both cats."""
    folder = mirror / "frames_twocats"
    if not folder.is_dir(): pytest.skip("no frames_twocats in the mirror")
    frames = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in sorted(folder.glob("*.png"))])
    return Video(frames), {name: torch.from_numpy(np.load(folder / f"{name}_cat_mask.npy")) for name in CATS}


def test_cats_by_boxes(cats):
    """GrabCut from a typed box finds the cats as the published masks have them."""
    video, masks = cats
    found, _ = cut_out(video, [Target(box=box) for box in CATS.values()], segment="grabcut")
    for name, mine in zip(CATS, found > 0.5):
        overlap = ((mine & masks[name]).sum() / (mine | masks[name]).sum()).item()
        print(f"{name} cat: overlap {overlap:.3f}")
        assert overlap > 0.9


@pytest.mark.parametrize("name", CATS)
@torch.no_grad()
def test_cats_twenty_times(cats, tmp_path, name):
    """Inside, the fur moves twenty times as far, as the pictures alone tell; outside, the frame stays as it was filmed.

    No flow network reads 5 px of motion in fur. So first the motion that was found is asked whether it is as long as the filmed frame says, then the output is sampled along twenty times the truth.
    What slides under its own edge is seen in no picture, and does not count.
    """
    video, masks = cats
    inside, far, net = masks[name][None], ~dilate_mask(masks[name], 60), load_flow("dis")
    field, magnifier = alpha_map(inside, [20.])[None, None], load_magnifier("lagrangian")
    edge = dilate_mask(masks[name], 14) & dilate_mask(~masks[name], 3)
    steep = lambda image: sum(g.square() for g in gradients(image)).mean(1)[0].sqrt()[edge].mean().item()
    first, (found, _) = to_tensor(video.frame(0)), cut_out(video, [Target(box=CATS[name])], segment="grabcut")
    for index in (5, 12):
        short, frame = Video(np.stack([video.frame(i).image for i in (0, index)])), to_tensor(video.frame(index))
        plain = magnifier.motion(first, frame, torch.zeros_like(first[:, :2])).flow
        motion = line_search(first, frame, plain, inside[None].float())
        little, gain = (photometric_gain(first, frame, m, inside).item() for m in (plain, motion))
        truth = 20 * gain * motion
        there = inside & ((warp(invert(truth * inside), truth) + truth).norm(dim=1) < 1)
        share = lambda image: 20 * photometric_gain(first, image, truth, there).item()
        everywhere = steep(magnifier(first, frame, torch.tensor([20.])))
        for how, mask in (("supplied", masks[name]), ("typed", found[0])):
            made = to_tensor(list(magnify_target(short, tmp_path / f"{how}-{index}.mkv", Target(20, mask=mask), progress=False).video)[-1])
            moved = (net(first, made) - net(first, frame)).norm(dim=1)[0][far].mean()
            changed = ((made - frame).abs().amax(1)[0] > 0.5 / 255)[far].float().mean().item()
            print(f"{name} cat, {how} mask, frame {index}: motion found {1 / little:.2f} of the filmed, after the search {1 / gain:.2f}; achieved {share(made):.1f}; outside it moves {moved:.3f} px "
                  f"differently, {changed:.4f} of its pixels changed; slopes along the edge {steep(made) / everywhere:.3f} of those without a mask")
            assert little > 1.05 and gain == pytest.approx(1, rel=0.1)
            assert share(made) == pytest.approx(20, rel=0.1)
            assert moved < 0.3 and changed < 0.001
            assert steep(made) < 1.1 * everywhere


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A mirror with a checkpoint of the published name; the network of that name is a tiny one made of the original's parts."""
    pytest.importorskip("torchvision")
    parts = pytest.importorskip("segment_anything").modeling

    def tiny():
        return parts.Sam(parts.ImageEncoderViT(depth=1, embed_dim=768, img_size=64, num_heads=2, mlp_ratio=0.1, out_chans=32),
                         parts.PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
                         parts.MaskDecoder(transformer_dim=32, transformer=parts.TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32)))
    file = get_asset("sam-vit-b").files[0]
    (tmp_path / file.path).parent.mkdir()
    torch.save(tiny().state_dict(), tmp_path / file.path)
    monkeypatch.setenv("FLOWMAG_NB_MIRROR", str(tmp_path))
    monkeypatch.setitem(sys.modules["segment_anything"].sam_model_registry, "vit_b", tiny)
    return tmp_path / file.path


def test_a_checkpoint_at_hand_is_found_checked_and_used(pretended, monkeypatch):
    image = np.zeros((48, 64, 3), np.uint8)
    segmenter = Segmenter(image)  # no warning: the better method can run
    assert segmenter.method == "sam"
    with pytest.raises(ValueError, match="sam-vit-b: .* is not the published file"): segmenter((9, 9, 20, 20))
    segmenter = Segmenter(image, sam=pretended, device="cpu")  # a file of one's own is taken at its word
    assert segmenter((9, 9, 20, 20)).shape == segmenter(points=(9, 9)).shape == (48, 64)
    assert all(torch.equal(value, torch.load(pretended)[key]) for key, value in segmenter.sam.state_dict().items())


@pytest.mark.parametrize("name", SAM_ASSETS)
def test_published_checkpoints(name):
    if not segment.find_asset(name): pytest.skip(f"no {name} in the mirror or the cache")
    assert Segmenter(np.zeros((48, 64, 3), np.uint8), sam=name)((9, 9, 20, 20)).shape == (48, 64)


@pytest.mark.parametrize("missing", ["segment_anything", "torchvision"])
def test_what_is_missing_is_named(missing, monkeypatch, pretended):
    for module in [m for m in sys.modules if m.split(".")[0] in ("segment_anything", missing)]: monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"needs {missing}.*flowmag_nb\[sam\]"): load_sam(pretended)


def test_without_a_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(segment, "sam_at_hand", lambda: None)
    with pytest.raises(FileNotFoundError, match="flowmag assets get sam-vit-b"): Segmenter(np.zeros((48, 64, 3), np.uint8), "sam")((9, 9, 20, 20))
    with pytest.warns(UserWarning, match="GrabCut: no checkpoint .*flowmag assets get sam-vit-b"): assert Segmenter(np.zeros((48, 64, 3), np.uint8)).method == "grabcut"


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"): Segmenter(np.zeros((48, 64, 3), np.uint8), "grabcut")((9, 9, 20, 20))
