"""Small clips and quick magnifiers for tests that are about files and processes, not about motion."""
import signal
import sys
import time

import numpy as np

from flowmag_nb.magnifiers import Magnifier, alpha_planes, register_magnifier
from flowmag_nb.video import VideoWriter


class Exaggerate(Magnifier):
    """The change of each pixel, times alpha."""
    def forward(self, reference, frame, alpha):
        return (reference + alpha_planes(alpha) * (frame - reference)).clamp(0, 1)


class Slow(Exaggerate):
    """Tells on stdout that it has begun, then takes its time."""
    def forward(self, reference, frame, alpha):
        print("begun", flush=True)
        time.sleep(.1)
        return super().forward(reference, frame, alpha)


register_magnifier("exaggerate", lambda weights=None: Exaggerate(), "pixel changes times alpha")
register_magnifier("slow", lambda weights=None: Slow(), "the same, slowly")


def listening():
    """For a child before it starts: a shell's background jobs ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sway(frames=12, height=48, width=64):
    """Stripes moving a third of a pixel to and fro under noise, one (h,w,3) uint8 frame at a time."""
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    for t in range(frames):
        x = np.arange(width) - .3 * np.sin(2 * np.pi * t / 12)
        yield (128 + 50 * np.sin(2 * np.pi * x / 16)[None, :, None] + noise).clip(0, 255).astype(np.uint8)


def write(path, frames, **options):
    """`frames` as a clip at `path`."""
    with VideoWriter(path, fps=24, **options) as writer:
        for image in frames:
            writer.write(image)
    return path


if __name__ == "__main__":
    from flowmag_nb.cli import main
    sys.exit(main())
