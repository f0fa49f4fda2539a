import json
from dataclasses import replace
from pathlib import Path

import pytest

from sammi_jax.config.experiment import CaptionConfig, OptimConfig, SegmentConfig, TrainConfig
from sammi_jax.config.fields import override
from sammi_jax.config.files import load_config, resolved, save_config
from sammi_jax.config.model import ClipConfig, MaskConfig, SegmenterConfig
from sammi_jax.errors import SammiError

CONFIG = TrainConfig(task=SegmentConfig())
CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("text", "get", "value"),
    [
        ("optim.peak_lr=1e-3", lambda c: c.optim.peak_lr, 1e-3),
        ("optim.peak_lr=1", lambda c: c.optim.peak_lr, 1.0),
        ("steps = 7", lambda c: c.steps, 7),
        ("task.clip=/models/clip", lambda c: c.task.clip, "/models/clip"),
        ("task.clip=123", lambda c: c.task.clip, "123"),
        ("task.clip=none", lambda c: c.task.clip, None),
        ("task.num_classes=8", lambda c: c.task.num_classes, 8),
        ("task.model.taps=(1, 2)", lambda c: c.task.model.taps, (1, 2)),
        ("task.model.clip.vision.width=96", lambda c: c.task.model.clip.vision.width, 96),
        ("task.model.aggregator.cost_skip=true", lambda c: c.task.model.aggregator.cost_skip, True),
        (
            "task.model.templates=('a {} = b', 'a, {}')",
            lambda c: c.task.model.templates,
            ("a {} = b", "a, {}"),
        ),
        ("data.view=os168", lambda c: c.data.view, "os168"),
    ],
)
def test_override(text, get, value):
    changed = override(CONFIG, text)
    assert get(changed) == value
    assert type(get(changed)) is type(value)
    assert type(changed.task) is SegmentConfig


def test_override_changes_one_field():
    changed = override(CONFIG, "optim.clip_norm=0.5")
    assert changed == replace(CONFIG, optim=OptimConfig(clip_norm=0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.peak_rl=1", r"optim\.peak_rl: no such field; did you mean peak_lr\?"),
        ("optm.peak_lr=1", r"optm: no such field; did you mean optim\?"),
        ("steps=many", "steps: 'many' is not of type int"),
        ("steps=1.5", "steps: 1.5 is not of type int"),
        ("steps=none", "steps: None is not of type int"),
        ("data.view=os49", "data.view: 'os49' is none of 'os48'"),
        ("steps.more=1", "steps: is 80000, which has no field more"),
        ("task.model.masks.dmi.low=1", "task.model.masks: is None, which has no field dmi"),
        ("task.model.taps=(1, 2, 3)", "task.model.taps"),
        (
            "task.model.templates=a {}",
            r"task.model.templates: 'a \{\}' is not of type tuple\[str, ...\]",
        ),
        ("steps", "write it as field=value"),
        ("=3", "write it as field=value"),
    ],
)
def test_override_refused(text, message):
    with pytest.raises(SammiError, match=message) as error:
        override(CONFIG, text)
    assert "\n" not in str(error.value)


def test_load_config(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from sammi_jax.config import CaptionConfig, TrainConfig\n"
        "config = TrainConfig(task=CaptionConfig(), steps=5)\n"
    )
    config = load_config(file, ["seed=3", "task.model.embed_dim=64"])
    assert config == TrainConfig(
        task=CaptionConfig(model=ClipConfig(embed_dim=64)), steps=5, seed=3
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such configuration"),
        ("x = 1", "defines no TrainConfig"),
        ("config = 3", "defines no TrainConfig"),
        ("config = ", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_load_config_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SammiError, match=message):
        load_config(tmp_path / "mine.py")


def test_saved_config(tmp_path):
    config = TrainConfig(task=SegmentConfig(model=SegmenterConfig(masks=MaskConfig())))
    save_config(config, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved == json.loads(json.dumps(resolved(config)))
    assert (saved["kind"], saved["task"]["model"]["masks"]["tspp"]["scale"]) == ("segment", 100.0)
    save_config(replace(config, log_every=1, keep=7), tmp_path / "run")
    for other in (
        replace(config, steps=3),
        replace(config, task=SegmentConfig()),
        replace(config, task=CaptionConfig()),
    ):
        with pytest.raises(SammiError, match="another experiment"):
            save_config(other, tmp_path / "run")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda f: f.stem)
def test_configs_load_and_explain_themselves(file):
    config = load_config(file)
    assert config.steps > 0
    assert f"sammi train --config {file.stem} " in file.read_text().split('"""')[1]
