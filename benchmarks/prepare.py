"""Images a second of `sammi datasets prepare`, with one process and with several.

Images of 640 x 480 (JPEG, about COCO's 163 kB each) and labels (PNG) in ADE20K's layout are
prepared and then examined, as the command does it; runs of all kinds alternate. All runs must write
the same bytes. CPU time is that of all processes, so it depends little on other jobs.

Command:   python benchmarks/prepare.py [--images 2048] [--runs 3] [--processes 1 2]
Hardware:  two CPU cores, 4 minutes
"""

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from pipeline import generate_files

from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.prepare.doctor import examine
from sammi_jax.data.prepare.write import prepare
from sammi_jax.data.sources import PreparedSource

COCO_IMAGES = 118_287
DRAWN = 16  # different images; the others are copies
QUALITY = 96  # gives files of COCO's mean size


def copies(folder: Path, number: int) -> None:
    """As many images as wanted: links to the generated ones."""
    root = folder / "ADEChallengeData2016"
    for part in ("images", "annotations"):
        files = sorted((root / part / "validation").iterdir())
        for index in range(len(files), number):
            file = files[index % len(files)]
            os.link(file, file.with_name(f"{index:06d}{file.suffix}"))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(source: Path, target: Path, processes: int) -> tuple[float, ...]:
    """Seconds and CPU seconds of preparing, then of examining."""
    began, cpu = time.perf_counter(), cpu_seconds()
    prepare(
        "ade20k_150",
        source,
        target,
        splits=["validation"],
        allow_incomplete=True,
        processes=processes,
    )
    between, cpu_between = time.perf_counter(), cpu_seconds()
    dataset = open_dataset("ade20k_150", data_dir=target)
    assert isinstance(dataset.source, PreparedSource)
    report = examine(dataset.source, dataset.num_classes, 255, processes=processes)
    assert report.sound
    ended, cpu_ended = time.perf_counter(), cpu_seconds()
    return between - began, cpu_between - cpu, ended - between, cpu_ended - cpu_between


def digest(folder: Path) -> str:
    """Of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    found: dict[int, list[tuple[float, ...]]] = {number: [] for number in options.processes}
    digests: set[str] = set()
    shards: list[Path] = []
    stored = 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "in"), Path(name, "out")
        generate_files(source, QUALITY, DRAWN)
        copies(source, options.images)
        for _ in range(options.runs):
            for processes, runs in found.items():
                runs.append(measure(source, target, processes))
                digests.add(digest(target))
                shards = list(target.rglob("*.array_record-*"))
                stored = sum(path.stat().st_size for path in shards)
                shutil.rmtree(target)
    assert len(digests) == 1, "the bytes depend on the number of processes"
    print_table(found, options.images)
    print(
        f"\n{options.images} images, {len(shards)} shards, {stored / options.images:,.0f} bytes an "
        f"image; {os.cpu_count()} CPUs; load average {load:.1f} before, {os.getloadavg()[0]:.1f} "
        "after"
    )
    print(
        f"COCO-Stuff's {COCO_IMAGES:,} training images (estimate): "
        f"{stored / options.images * COCO_IMAGES / 2**30:.1f} GiB"
    )


def print_table(found: dict[int, list[tuple[float, ...]]], images: int) -> None:
    # Starting a process costs the same for any number of images, so it does not count here.
    least = min(statistics.median(run[1] + run[3] for run in runs) for runs in found.values())
    print(
        "| processes | prepare, images/s | CPU ms | examine, images/s | CPU ms | COCO-Stuff, min |"
    )
    print("|---|---|---|---|---|---|")
    for processes, runs in found.items():
        prepared, used, examined, used_again = (
            statistics.median(run[column] for run in runs) for column in range(4)
        )
        minutes = COCO_IMAGES * least / images / processes / 60
        print(
            f"| {processes} | {images / prepared:.0f} | {1000 * used / images:.1f} "
            f"| {images / examined:.0f} | {1000 * used_again / images:.1f} | {minutes:.0f} |"
        )


if __name__ == "__main__":
    main()
