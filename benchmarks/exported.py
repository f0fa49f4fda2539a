"""An exported model in another process: equal labels, size on disk, time to load.

The bundled model is exported; a process that cannot import sammi_jax segments scenes of OpenShapes
with ``run_exported.py``, and its labels are compared with `Segmenter.segment` in this process.
For the published size (CLIP ViT-B/16, SAM ViT-B) the programs alone are made, without weights.

Command:   python benchmarks/exported.py
Hardware:  two CPU cores, 3 minutes
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import sammi_jax
from sammi_jax.config.model import SEGMENTER_SIZES, MaskConfig
from sammi_jax.data.openshapes import OpenShapes
from sammi_jax.export.folder import write_export
from sammi_jax.export.programs import export_programs

NUM_SCENES = 8
PUBLISHED = dataclasses.replace(SEGMENTER_SIZES["vitb16"], masks=MaskConfig())
OTHER_PROCESS = """
import json, sys, time
class Forbid:
    def find_spec(self, name, *_):
        assert name.partition(".")[0] != "sammi_jax"
sys.meta_path.insert(0, Forbid())
import numpy as np
start = time.perf_counter()
from run_exported import ExportedModel
times = {"import": time.perf_counter() - start}
start = time.perf_counter()
model = ExportedModel(".")
times["load"] = time.perf_counter() - start
task = np.load(sys.argv[1])
labels, seconds = [], []
for image in task["images"]:
    start = time.perf_counter()
    labels.append(model.segment(image, task["names"].tolist()))
    seconds.append(time.perf_counter() - start)
times |= {"first": seconds[0], "next": float(np.median(seconds[1:]))}
np.save(sys.argv[2], labels)
print(json.dumps(times))
"""


def main() -> None:
    """Print the tables."""
    source = OpenShapes("test_unseen", "os48")
    names = source.view.class_names
    images = [np.asarray(source[index]["image"]) for index in range(NUM_SCENES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        exported = write_export("openshapes", folder / "exported")
        rows = [("export", time.perf_counter() - start)]
        print("| file | bytes |\n|---|---|")
        for path in sorted(exported.iterdir()):
            print(f"| `{path.name}` | {len(path.read_bytes()):,} |")
        np.savez(folder / "task.npz", images=images, names=names)
        command = [sys.executable, "-c", OTHER_PROCESS, "../task.npz", "../labels.npy"]
        done = subprocess.run(command, cwd=exported, capture_output=True, text=True, check=True)
        labels = np.load(folder / "labels.npy")
    rows += [(f"other process: {what}", value) for what, value in json.loads(done.stdout).items()]
    start = time.perf_counter()
    model = sammi_jax.load("openshapes")
    rows.append(("sammi_jax: load", time.perf_counter() - start))
    equal, seconds = [], []
    for image, label in zip(images, labels, strict=True):
        start = time.perf_counter()
        equal.append(float((model.segment(image, names).labels == label).mean()))
        seconds.append(time.perf_counter() - start)
    rows += [("sammi_jax: first", seconds[0]), ("sammi_jax: next", float(np.median(seconds[1:])))]
    start = time.perf_counter()
    programs = export_programs(PUBLISHED)
    rows.append(("export, ViT-B/16 with SAM ViT-B", time.perf_counter() - start))
    print("\n| step | seconds |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value:.2f} |")
    print(
        f"\nequal labels: {min(equal):.6f} at least, of {NUM_SCENES} scenes, {len(names)} classes"
    )
    for program in programs:
        size = len(program.exported.serialize())
        limits = f"{program.min_classes} to {program.max_classes or 'any'} classes"
        print(f"published size: {program.role}, {limits}: {size:,} bytes")


if __name__ == "__main__":
    main()
