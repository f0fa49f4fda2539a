"""The file layouts of the known sets."""

from sammi_jax.data.prepare.layout import Layout, Split
from sammi_jax.data.prepare.split_lists import (
    CWFID,
    POTSDAM,
    Ids,
    chase_ids,
    context_ids,
    cub_ids,
    lines,
    paxray_ids,
)
from sammi_jax.data.vocabulary import vocabulary_names
from sammi_jax.errors import SammiError


def get_layout(name: str) -> Layout:
    """The layout of a known set.

    Raises:
        SammiError: there is none of that name.
    """
    if name not in LAYOUTS:
        raise SammiError(f"{name}: no such data set; 'sammi datasets list' shows all")
    return LAYOUTS[name]


_CRYO = "Annotator 1 (biologist second round of manual marks up)"
_VOC = Layout(
    "VOC2012",
    ("JPEGImages/{id}.jpg",),
    ("SegmentationClassAug/{id}.png", "SegmentationClass/{id}.png"),
    (Split("val", (1449,), lines("ImageSets/Segmentation/val.txt")),),
)


def _test(count: int, ids: Ids | None = None) -> tuple[Split, ...]:
    return (Split("test", (count,), ids),)


def _val(count: int) -> tuple[Split, ...]:
    return (Split("val", (count,)),)


def _paxray(channel: int) -> Layout:
    return Layout(
        "paxray_dataset",
        ("images/{id}.png",),
        ("paxray.json",),
        _test(180, paxray_ids),
        kind="stack",
        channel=channel,
    )


LAYOUTS: dict[str, Layout] = {
    "coco_stuff_171": Layout(
        "coco-stuff",
        ("images/{split}/{id}.jpg", "{split}/{id}.jpg"),
        (
            "annotations/{split}/{id}.png",
            "stuffthingmaps_trainval2017/{split}/{id}.png",
            "stuffthingmaps/{split}/{id}.png",
        ),
        (Split("val2017", (5_000,)), Split("train2017", (118_287,))),
    ),
    "ade20k_150": Layout(
        "ADEChallengeData2016",
        ("images/{split}/{id}.jpg",),
        ("annotations/{split}/{id}.png",),
        (Split("validation", (2_000,)), Split("training", (20_210,))),
    ),
    "ade20k_847": Layout(
        "ADE20K_2021_17_01",
        ("images/ADE/{split}/{id}.jpg",),
        ("images/ADE/{split}/{id}_seg.png",),
        (Split("validation", (2_000,)),),
        kind="ade_full",
        short_side=512,
    ),
    "pascal_context_59": Layout(
        "VOC2010",
        ("JPEGImages/{id}.jpg",),
        ("trainval_merged.json",),
        (Split("val", (5_104, 5_105), context_ids),),
        kind="coco_rle",
    ),
    "pascal_context_459": Layout(
        "VOC2010",
        ("JPEGImages/{id}.jpg",),
        ("trainval/{id}.mat",),
        (Split("val", (5_104,), lines("pascalcontext_val.txt")),),
        kind="mat",
    ),
    "pascal_voc_20": Layout(_VOC.root, _VOC.image, _VOC.label, _VOC.splits, drop_ignored=True),
    "pascal_voc_20b": _VOC,
    "mess_bdd100k": Layout(
        "bdd100k",
        ("images/10k/{split}/{id}.jpg",),
        ("labels/sem_seg/colormaps/{split}/{id}.png",),
        _val(1_000),
    ),
    "mess_dark_zurich": Layout(
        "Dark_Zurich",
        ("rgb_anon/{split}/night/GOPR0356/{id}_rgb_anon.png",),
        ("gt/{split}/night/GOPR0356/{id}_gt_labelIds.png",),
        _val(50),
        kind="dark_zurich",
    ),
    "mess_mhp_v1": Layout(
        "LV-MHP-v1",
        ("images/{id}.jpg",),
        ("annotations/{id}_*.png",),
        _test(980, lines("test_list.txt", ".jpg")),
        kind="persons",
        cut_short=True,
    ),
    "mess_foodseg": Layout(
        "FoodSeg103",
        ("Images/img_dir/{split}/{id}.jpg",),
        ("Images/ann_dir/{split}/{id}.png",),
        _test(2_125),
    ),
    "mess_atlantis": Layout(
        "atlantis", ("images/{split}/{id}.jpg",), ("masks/{split}/{id}.png",), _test(1_295)
    ),
    "mess_dram": Layout("DRAM_processed", ("{split}/{id}.jpg",), ("labels/{id}.png",), _test(718)),
    "mess_isaid": Layout(
        "isaid",
        ("{split}/images/{id}.png",),
        (
            "{split}/Semantic_masks/images/{id}_instance_color_RGB.png",
            "raw_{split}/images/{id}_instance_color_RGB.png",
        ),
        _val(4_055),
        kind="rgb",
        tile=1024,
    ),
    "mess_isprs_potsdam": Layout(
        "ISPRS_Potsdam",
        ("3_Ortho_IRRG/{id}_IRRG.tif",),
        ("Labels/{id}_label.tif", "5_Labels_all/{id}_label.tif"),
        _test(504, POTSDAM),
        kind="rgb_halves",
        tile=1024,
    ),
    "mess_worldfloods": Layout(
        "WorldFloods",
        ("{split}/S2/{id}.tif",),
        ("{split}/gt/{id}.tif",),
        _test(160),
        tile=1024,
        sentinel=True,
    ),
    "mess_floodnet": Layout(
        "FloodNet-Supervised_v1.0",
        ("{split}/{split}-org-img/{id}.jpg",),
        ("{split}/{split}-label-img/{id}_lab.png",),
        _test(5_571),
        tile=1024,
    ),
    "mess_uavid": Layout(
        "uavid_v1.5",
        ("uavid_{split}/{seq}/Images/{id}.png",),
        ("uavid_{split}/{seq}/Labels/{id}.png",),
        _val(840),
        kind="luma",
        tile=1024,
    ),
    "mess_kvasir_instrument": Layout(
        "kvasir-instrument",
        ("images/{id}.jpg",),
        ("masks/{id}.png",),
        _test(118, lines("test.txt")),
        kind="full_white",
    ),
    "mess_chase_db1": Layout("CHASEDB1", ("{id}.jpg",), ("{id}_1stHO.png",), _test(20, chase_ids)),
    "mess_cryonuseg": Layout(
        "CryoNuSeg",
        ("tissue images/{id}.tif",),
        (f"{_CRYO}/{_CRYO}/mask binary/{{id}}.png", f"{_CRYO}/mask binary/{{id}}.png"),
        _test(30),
        kind="full_white",
    ),
    "mess_paxray_lungs": _paxray(0),
    "mess_paxray_mediastinum": _paxray(10),
    "mess_paxray_bones": _paxray(24),
    "mess_paxray_diaphragm": _paxray(163),
    "mess_corrosion_cs": Layout(
        "Corrosion Condition State Classification",
        ("original/Test/images/{id}.jpeg",),
        ("original/Test/masks/{id}.png",),
        _test(44),
    ),
    "mess_deepcrack": Layout(
        "DeepCrack",
        ("{split}_img/{id}.jpg",),
        ("{split}_lab/{id}.png",),
        _test(237),
        kind="full_white",
    ),
    "mess_pst900": Layout(
        "PST900_RGBT_Dataset",
        ("{split}/thermal/{id}.png",),
        ("{split}/labels/{id}.png",),
        _test(288),
    ),
    "mess_zerowaste": Layout(
        "zerowaste-f",
        ("splits_final_deblurred/{split}/data/{id}.PNG",),
        ("splits_final_deblurred/{split}/sem_seg/{id}.PNG",),
        _test(929),
    ),
    "mess_suim": Layout(
        "SUIM", ("TEST/images/{id}.jpg",), ("TEST/masks/{id}.bmp",), _test(110), kind="rgb"
    ),
    "mess_cub_200": Layout(
        "CUB_200_2011",
        ("images/{id}.jpg",),
        ("segmentations/{id}.png",),
        _test(5_794, cub_ids),
        kind="species",
    ),
    "mess_cwfid": Layout(
        "cwfid",
        ("images/{id}_image.png",),
        ("annotations/{id}_annotation.png",),
        _test(21, CWFID),
        kind="rgb",
    ),
}

assert set(LAYOUTS) == set(vocabulary_names())
