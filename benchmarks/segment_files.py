"""Memory, compilations and time of `sammi segment`: many images of many sizes, and a large one.

Run: ``python benchmarks/segment_files.py many`` (1,000 images of 20 sizes, interrupted and resumed)
or ``python benchmarks/segment_files.py large [--model DIR] [--tile 1024]`` (12,000 x 9,000 pixels,
150 classes). Images are drawn noise; without ``--model`` the bundled model is used.
"""

import argparse
import resource
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

NUM_IMAGES, NUM_SIZES = 1000, 20
LARGE = (9000, 12000)


def draw(path: Path, size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.NEAREST).save(path)


def names(count: int) -> list[str]:
    """Classes that the bundled model's 30 words can express."""
    from sammi_jax.data.catalogue import open_dataset

    return list(open_dataset("os168/val_unseen", 1).class_names)[:count]


def resident() -> float:
    """GiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def peak() -> float:
    """GiB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def many(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images"), Path(folder, "out")
        images.mkdir()
        rng = np.random.default_rng(0)
        sizes = [(int(h), int(w)) for h, w in rng.integers(60, 700, (NUM_SIZES, 2))]
        for index in range(NUM_IMAGES):
            draw(images / f"{index:04d}.png", sizes[index % NUM_SIZES], index)
        command = [sys.executable, __file__, "job", str(images), str(out)]
        job = subprocess.Popen(command)
        while len(list(out.glob("*.json"))) < NUM_IMAGES // 3:
            time.sleep(0.2)
        job.send_signal(signal.SIGINT)
        code = job.wait()
        print(f"interrupted with code {code} after {len(list(out.glob('*.json')))} images")
        subprocess.run(command, check=True)
        print(f"{len(list(out.glob('*.json')))} results")


def job(args: argparse.Namespace) -> None:
    import jax

    from sammi_jax.cli.main import main

    # a shell that runs this in the background makes its children ignore the signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    import tqdm

    began, seen = time.perf_counter(), []

    def write(text: str, **_: object) -> None:
        seen.append(text)
        if len(seen) % 100 == 0 or len(seen) in (1, 25):
            seconds = time.perf_counter() - began
            print(
                f"{len(seen):5d} images {seconds:6.1f} s, resident {resident():.2f} GiB, "
                f"{len(compiled)} compilations",
                flush=True,
            )

    tqdm.tqdm.write = write  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main(["segment", args.images, "--classes", ", ".join(names(20)), "--out", args.out]))


def large(args: argparse.Namespace) -> None:
    import sammi_jax
    from sammi_jax.inference.tiles import TileGrid

    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "large.png"), LARGE, 0)
        model = sammi_jax.load(args.model) if args.model else sammi_jax.load()
        classes = (
            [f"{a} {b}" for a, b in product(range(15), range(10))] if args.model else names(150)
        )
        print(f"loaded: peak {peak():.2f} GiB")
        Image.MAX_IMAGE_PIXELS = None
        tile = TileGrid(args.tile, args.tile // 4) if args.tile else None
        began = time.perf_counter()
        result = model.segment(Path(folder, "large.png"), classes, tile=tile)
        print(f"segmented: {time.perf_counter() - began:.1f} s, peak {peak():.2f} GiB")
        result.write(Path(folder, "out"), "large")
        print(f"written: {time.perf_counter() - began:.1f} s, peak {peak():.2f} GiB")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("many").set_defaults(run=many)
    one = commands.add_parser("job")
    one.add_argument("images")
    one.add_argument("out")
    one.set_defaults(run=job)
    big = commands.add_parser("large")
    big.add_argument("--model")
    big.add_argument("--tile", type=int)
    big.set_defaults(run=large)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run()
