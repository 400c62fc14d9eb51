"""Pairs that came from an encoder: told from others, and measured with its rounding in mind."""
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from standins import write

import flowmag_nb.flow.guided as guided
from flowmag_nb.copies import copied
from flowmag_nb.flow import load_flow
from flowmag_nb.video import Video, to_tensor
from flowmag_nb.warp import warp

SIDE = 192


def scene(seed):
    """Two pictures of four tiles, each moved by half a pixel in a direction of its own, and the true motion."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None]
    spectrum = rng.normal(size=(4, SIDE, SIDE)) + 1j * rng.normal(size=(4, SIDE, SIDE))
    spectrum *= (fx**2 + fy**2 + 1e-4) ** -.65 * (np.hypot(fx, fy) < .3)
    texture = torch.from_numpy(np.fft.ifft2(spectrum).real).float()[:, None]
    texture = .5 + .16 * (texture - texture.mean((2, 3), keepdim=True)) / texture.std((2, 3), keepdim=True)
    angle = torch.from_numpy(rng.uniform(0, 2 * np.pi, 4)).float()
    motion = .5 * torch.stack([angle.cos(), angle.sin()], 1)[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    where = (torch.arange(SIDE) >= SIDE // 2).long()
    which = (2 * where[:, None] + where)[None, None]
    both = texture, warp(texture, -motion, "bicubic", "border")
    first, second = (x.movedim(1, 0).gather(1, which).expand(-1, 3, -1, -1).clamp(0, 1) for x in both)
    return first, second, motion.movedim(0, 1).gather(1, which[:, 0, None].expand(2, 1, -1, -1).reshape(2, 1, SIDE, SIDE)).movedim(1, 0)


def through_codec(folder, first, second, crf):
    """The two pictures as a film of two frames, read again."""
    images = (255 * torch.cat([first, second])).round().byte().permute(0, 2, 3, 1).numpy()
    frames = to_tensor(list(Video(write(folder / "two.mp4", images, crf=crf))))
    return frames[:1], frames[1:]


@pytest.mark.parametrize("crf", [18, 23, 28])
def test_copies_are_told_and_lenses_are_not(crf, tmp_path):
    first, second, _ = scene(0)
    assert copied(first, second).item() == 0
    assert copied(*through_codec(tmp_path, first, second, crf)).item() > .8


def test_votes_of_copies_are_evened_out(tmp_path, monkeypatch):
    net, errors = load_flow("guided"), {}
    pairs = [scene(seed) for seed in range(3)]
    for name, share in dict(believed=lambda *_: torch.zeros(1), evened=copied).items():
        monkeypatch.setattr(guided, "copied", share)
        with torch.no_grad():
            found = [(net(*through_codec(tmp_path, *pair[:2], 28)) - pair[2]).norm(dim=1).mean().item() for pair in pairs]
            errors[name], clean = np.mean(found), net(*pairs[0][:2])
        errors.setdefault("clean", clean)
        assert torch.equal(errors["clean"], clean)
    assert errors["evened"] < .9 * errors["believed"], errors


def test_a_blank_pair_beside_a_copied_one_stays_at_rest(tmp_path):
    first, second = through_codec(tmp_path, *scene(0)[:2], 28)
    with torch.no_grad(): found = load_flow("guided")(torch.cat([first, 0 * first]), torch.cat([second, 0 * first]))
    assert found[0].isfinite().all() and found[0].norm(dim=0).mean() > .3 and found[1].abs().max() == 0


def test_the_network_for_copies_learns_alone_and_sees_no_other_pair(tmp_path):
    net, pair = load_flow("guided", teach="coded"), scene(0)
    coded, start = through_codec(tmp_path, *pair[:2], 28), {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad(): before = net(*pair[:2]), net(*coded)
    optimizer = torch.optim.Adam([p for p in net.train().parameters() if p.requires_grad], 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (net(*coded) - pair[2]).norm(dim=1).mean().backward()
        optimizer.step()
    changed = {name.partition(".")[0] for name, value in net.eval().state_dict().items() if not value.equal(start[name])}
    with torch.no_grad(): after = net(*pair[:2]), net(*coded)
    assert changed == {"coded"}
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_weights_without_a_network_for_copies_lend_it_the_first(tmp_path):
    fresh = load_flow("guided", untrained=True)
    torch.nn.init.normal_(fresh.guide.out.weight, std=.1)
    save_file(fresh.state_dict(), tmp_path / "first.safetensors")
    lent = load_flow("guided", weights=tmp_path / "first.safetensors")
    assert all(value.equal(lent.coded.state_dict()[name]) for name, value in fresh.guide.state_dict().items())


def test_half_a_network_for_copies_is_refused(tmp_path):
    state = load_flow("guided").state_dict()
    del state["coded.out.bias"]
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="1 keys missing: coded.out.bias"): load_flow("guided", weights=tmp_path / "half.safetensors")
