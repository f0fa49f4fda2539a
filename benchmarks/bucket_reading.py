"""Images a second of training batches that are read from a bucket, against local disk.

A bucket here is gcp-storage-emulator in another process, behind a port that passes every request
on after `--latency` milliseconds. Images of 640 x 480 with labels (170 kB together) are prepared
into it and read as in training, in crops of 384 and batches of 4, with an empty cache; then the
same again from the cache. "Records" are only downloaded and checked, not decoded, which shows what
the threads hide where the CPU is not the limit. More than some 30 threads overrun the emulator,
which answers one request at a time and lets five wait.

Command:   python benchmarks/bucket_reading.py [--images 512] [--latency 50]
Hardware:  two CPU cores, 5 minutes; needs the `dev` extra
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import generate_files
from prepare import DRAWN, QUALITY, copies

BATCH_SIZE, CROP, IGNORE, BUCKET = 4, 384, 255, "bucket"
NAME, SPLIT, TO = "ade20k_150", "validation", f"gs://{BUCKET}/data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds a request")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        generate_files(top / "in", QUALITY, DRAWN)
        copies(top / "in", options.images)
        fast, slow = start_store(options.latency / 1000)
        use(fast, top / "uploaded")
        for place in (top / "data", TO):
            prepare_into(top / "in", place)
        use(slow, top / "whole")
        print(f"all shards downloaded: {whole():.1f} s\n")
        print("| from | threads | first batch, s | images/s | again, images/s | records/s |")
        print("|---|---|---|---|---|---|")
        first, rate, used = read(top / "data", options.images, 4)
        more = 0.0
        print(f"| disk | 4 | {first:.2f} | {rate:.0f} | - | - |")
        for threads in options.threads:
            use(slow, top / f"batches{threads}")
            found = read(TO, options.images, threads)
            again = read(TO, options.images, threads)
            use(slow, top / f"records{threads}")
            plain = records(options.images, threads)
            print(
                f"| bucket | {threads} | {found[0]:.2f} | {found[1]:.0f} | {again[1]:.0f} "
                f"| {plain:.0f} |"
            )
            more = found[2] - used
    print(
        f"\nCPU an image: {used:.1f} ms from disk, {more:.1f} ms more from the bucket; "
        f"{os.cpu_count()} CPUs; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


def start_store(latency: float) -> tuple[int, int]:
    """The ports of the emulator and of the slow way to it."""
    ports = free_port(), free_port()
    context = multiprocessing.get_context("spawn")
    context.Process(target=serve, args=(*ports, latency), daemon=True).start()
    for port in ports:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
    return ports


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(port: int, slow_port: int, latency: float) -> None:
    """The emulator, and a port that leads to it slowly. It takes one request a connection."""
    from gcp_storage_emulator.server import create_server

    create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET).start()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(latency)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        answers = asyncio.create_task(carry(far_reader, writer))
        await carry(reader, far_writer)
        await answers

    async def listen() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", slow_port)
        await server.serve_forever()

    asyncio.run(listen())


def use(port: int, cache: Path) -> None:
    """Let the clients of this process use this port, and an empty cache."""
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    from sammi_jax import object_store

    object_store.as_path(TO)  # gcsfs reads a variable that this sets
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    object_store._filesystem.cache_clear()


def prepare_into(source: Path, place: str | Path) -> None:
    from sammi_jax.data.prepare.write import prepare
    from sammi_jax.object_store import as_path

    prepare(NAME, source, as_path(place), splits=[SPLIT], allow_incomplete=True)


def whole() -> float:
    """Seconds to download all shards."""
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.object_store import as_path

    began = time.perf_counter()
    open_dataset(f"{NAME}/{SPLIT}", data_dir=as_path(TO))
    return time.perf_counter() - began


def read(place: str | Path, images: int, threads: int) -> tuple[float, float, float]:
    """Seconds to the first batch; images/s after it; CPU milliseconds an image."""
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.data.input.augment import TrainCrop
    from sammi_jax.data.input.pipeline import batch_stream, iterate
    from sammi_jax.object_store import as_path

    began, cpu = time.perf_counter(), time.process_time()
    source = open_dataset(NAME, data_dir=as_path(place), record_by_record=True).source
    stream = batch_stream(source, [TrainCrop(CROP, IGNORE)], batch_size=BATCH_SIZE, seed=0)
    batches = iterate(stream[: images // BATCH_SIZE], 0, 0, threads)
    next(batches)
    first = time.perf_counter()
    count = sum(len(batch["image"]) for batch in batches)
    ended, used = time.perf_counter(), time.process_time() - cpu
    return first - began, count / (ended - first), 1000 * used / images


def records(images: int, threads: int) -> float:
    """Records a second that are downloaded and checked, in the order of a shuffle."""
    from sammi_jax.data.bucket_records import BucketRecords
    from sammi_jax.data.catalogue import find_prepared
    from sammi_jax.data.prepare.record_offsets import read_offsets
    from sammi_jax.data.prepare.write import prepared_folder
    from sammi_jax.object_store import as_path

    shards = read_offsets(find_prepared(NAME, as_path(TO)), f"{NAME}-{SPLIT}.")
    found = BucketRecords(prepared_folder(as_path(TO), NAME), shards or {})
    order: Sequence[int] = sorted(range(images), key=lambda index: index * 7919 % 10007)
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(lambda index: len(found[index]), order))
    assert min(sizes) > 0
    return images / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
