import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from sammi_jax.data.vocabulary import get_vocabulary, vocabulary_names
from sammi_jax.errors import SammiError
from sammi_jax.text.tokenizer import BPE_FILE, END, START, Tokenizer
from sammi_jax.text.vocabulary import (
    check_class_names,
    first_synonym,
    parse_class_list,
    prompts,
    read_class_file,
)

TEXTS = [
    "A photo of a potted plant's leaf 3 in the scene",
    "wall-brick",
    "  hot   dog\t",
    "Café au lait, naïve façade",
    "ÉCOLE 1234 no. 5!?",
    "we'll they've I'm he'd it's don't",
    "日本語 страница 😀",
    "",
    "x" * 30,
]


@pytest.fixture(scope="module")
def tokenizer(bpe_file) -> Tokenizer:
    return Tokenizer.from_folder(bpe_file.parent)


@pytest.fixture(scope="module")
def hugging_face(tokenizer, tmp_path_factory) -> transformers.CLIPTokenizer:
    """transformers' own tokenizer on a vocabulary and merges taken from what we save."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer.save(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pairs = [tuple(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in pairs)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    with warnings.catch_warnings():  # transformers 5.12 gives tokenizers the file's name
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    theirs.folder = folder
    return theirs


def padded(ids: list[int], length: int = 77) -> list[int]:
    return ids + [0] * (length - len(ids))


def test_the_real_vocabulary(tokenizer):
    assert tokenizer.vocab_size == 49408
    rows = tokenizer(["a photo of a cat", "dog"])
    assert rows.dtype == np.int32
    assert rows[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert rows[1].tolist() == padded([49406, 1929, 49407])


def test_goldens(tokenizer, goldens):
    arrays = np.load(goldens / "catseg_tiny_eval.npz")
    settings = json.loads((goldens / "catseg_tiny.json").read_text())
    for split in ("test", "train"):
        texts = prompts(settings[f"{split}_classes"], settings["template"])
        np.testing.assert_array_equal(tokenizer(texts), arrays[f"tokens_{split}_real"])


def test_same_ids_as_transformers(tokenizer, hugging_face):
    rows = tokenizer(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        assert row.tolist() == padded(hugging_face(text)["input_ids"]), text


def test_every_class_name_as_transformers(tokenizer, hugging_face):
    names = [name for key in vocabulary_names() for name in get_vocabulary(key).classes]
    texts = prompts(names, "A photo of a {}")
    assert len(texts) > 2000
    rows = tokenizer(texts)
    for row, ids in zip(rows, hugging_face(texts)["input_ids"], strict=True):
        assert row.tolist() == padded(ids)


def test_three_sources_agree(tokenizer, hugging_face, tmp_path):
    from_vocabulary = Tokenizer.from_folder(hugging_face.folder)
    hugging_face.save_pretrained(tmp_path / "theirs")
    from_theirs = Tokenizer.from_folder(tmp_path / "theirs")
    tokenizer.save(tmp_path)
    from_ours = Tokenizer.from_folder(tmp_path)
    for other in (from_vocabulary, from_theirs, from_ours):
        assert other.vocab_size == 49408
        np.testing.assert_array_equal(other(TEXTS), tokenizer(TEXTS))


def test_saved_file_serves_transformers(tokenizer, tmp_path):
    """The special tokens are in the file's own post-processing too."""
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("a cat").ids == [49406, 320, 2368, 49407]


def word_tokenizer(**special: int) -> tokenizers.Tokenizer:
    vocabulary = {"[UNK]": 0, "cat": 1, "dog": 2, "red": 3, **special}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_any_vocabulary_with_the_special_tokens(tmp_path):
    words = word_tokenizer(**{START: 4, END: 5})
    words.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 4), (END, 5)]
    )
    words.enable_padding(length=12, pad_id=5)
    words.enable_truncation(3)
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer("red cat zebra", 8).tolist() == [[4, 3, 1, 0, 5, 0, 0, 0]]
    assert tokenizer(["red", "red cat dog"], context_length=5).tolist() == [
        [4, 3, 5, 0, 0],
        [4, 3, 1, 2, 5],
    ]
    added = word_tokenizer()
    added.add_special_tokens([AddedToken(START), AddedToken(END)])
    assert Tokenizer(added)(["cat"], 4).tolist() == [[4, 1, 5, 0]]


def test_long_texts_are_cut_with_one_warning():
    tokenizer = Tokenizer(word_tokenizer(**{START: 4, END: 5}))
    texts = ["red red red red cat", "dog", "cat cat cat cat"]
    with pytest.warns(UserWarning, match="cut because longer than 5 tokens") as caught:
        rows = tokenizer(texts, 5)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert texts[0] in message
    assert texts[2] in message
    assert "dog" not in message
    assert rows.tolist() == [[4, 3, 3, 3, 5], [4, 2, 5, 0, 0], [4, 1, 1, 1, 5]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["red cat dog"], 5)


def test_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(SammiError, match=r"no tokenizer; put tokenizer.json, or vocab.json and"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("special", "message"),
    [({}, "not a CLIP tokenizer"), ({END: 4, START: 5}, "has id 4 and another token 5")],
)
def test_vocabulary_without_the_special_tokens(tmp_path, special, message):
    word_tokenizer(**special).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SammiError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_vocabulary_file_without_the_special_tokens(tmp_path):
    """transformers would add them with new ids, for which no model has rows."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(SammiError, match=r"vocab.json: .* \(it has no <\|startoftext\|> or"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_is_read_without_pytorch(bpe_file):
    """transformers is imported late, brings no PyTorch along, and does not warn that it lacks."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        "from sammi_jax.text.tokenizer import Tokenizer\n"
        "assert 'transformers' not in sys.modules\n"
        f"rows = Tokenizer.from_file({str(bpe_file)!r})('a cat', 4)\n"
        "assert rows.tolist() == [[49406, 320, 2368, 49407]]\n"
        "assert 'transformers' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_damaged_files(tmp_path, bpe_file):
    (tmp_path / "tokenizer.json").write_text('{"model":')
    with pytest.raises(SammiError, match=r"tokenizer.json: not readable as JSON") as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("a b c d\n")
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(SammiError, match=r"vocab.json: expected a JSON object"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").unlink()
    shutil.copy(bpe_file, tmp_path)
    whole = (tmp_path / BPE_FILE).read_bytes()
    (tmp_path / BPE_FILE).write_bytes(whole[: len(whole) // 10])
    with pytest.raises(SammiError, match=r"bpe_simple_vocab_16e6.txt.gz"):
        Tokenizer.from_folder(tmp_path)


def test_class_list_from_text():
    assert parse_class_list("cat, dog") == ["cat", "dog"]
    assert parse_class_list(" traffic light ,cat,") == ["traffic light", "cat"]


@pytest.mark.parametrize("text", ["", " , ,"])
def test_empty_class_list(text):
    with pytest.raises(SammiError, match="the class list is empty"):
        parse_class_list(text)


def test_duplicate_classes_are_named():
    with pytest.raises(SammiError, match="names Cat, hot  dog more than once") as error:
        parse_class_list("cat, hot dog, Cat, bird, hot  dog, Cat")
    assert "\n" not in str(error.value)


def test_class_list_from_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("building, edifice\n bed \nroad, route\n\n", encoding="utf-8-sig")
    names = parse_class_list(str(file))
    assert names == ["building, edifice", "bed", "road, route"] == read_class_file(file)
    assert prompts(names, "A photo of a {} in the scene") == [
        f"A photo of a {name} in the scene" for name in ("building", "bed", "road")
    ]
    for absent in ("absent.txt", "absent.names", "./names", "C:\\names"):
        with pytest.raises(SammiError, match="no such file of class names"):
            parse_class_list(absent)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SammiError, match="cannot be read as a list of class names"):
        read_class_file(file)


@pytest.mark.parametrize("name", ["c.json", "c.names", "C.TXT", "list of names"])
def test_an_existing_path_is_read_whatever_its_name(tmp_path, name):
    names = ["wall", "sky, heaven"]
    text = json.dumps(names) if name.endswith("json") else "\n".join(names)
    (tmp_path / name).write_text(text)
    assert parse_class_list(f" {tmp_path / name} ") == names
    (tmp_path / name).write_text('{"0": "wall", "1": "sky, heaven"}')
    assert read_class_file(tmp_path / name) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0: wall\n1: sky", "line 1, '0: wall', is a number before the name"),
        ("wall\n# outside\nsky", "line 2, '# outside', is a comment"),
        ("wall,\nsky,", "line 1, 'wall,', is a name that ends with a separator"),
        ('"wall"\n"sky"', "is a name in quotes"),
        ("wall\n\nsky", "line 2, '', is no name"),
        ("wall, building, sky", "is one class with synonyms; write one name a line"),
        ('{"wall": 0}', "give a JSON list of names"),
        ('["wall", 3]', "class names must be strings; 3 is none"),
        ("[wall]", "is not valid JSON"),
        ('["wall", " ", "sky"]', "one of its names is empty"),
        ("", "the class list is empty"),
    ],
)
def test_files_that_hold_no_plain_names(tmp_path, text, words):
    file = tmp_path / "names.txt"
    file.write_text(text)
    with pytest.raises(SammiError) as error:
        read_class_file(file)
    assert str(error.value).startswith(f"{file}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_one_text_is_names_with_commas():
    assert check_class_names("cat, dog") == ["cat", "dog"]
    with pytest.raises(SammiError, match="class names must be strings; None is none"):
        check_class_names(["cat", None])


def test_equal_prompts_give_a_warning():
    with pytest.warns(UserWarning, match="that of another: crane, machine; only the first"):
        names = check_class_names(["crane, bird", "crane, machine", "sky"])
    assert names == ["crane, bird", "crane, machine", "sky"]


def test_first_synonym():
    assert first_synonym("adding machine, totalizer, totaliser") == "adding machine"
    assert first_synonym("bed ") == "bed"
    assert first_synonym("a,b") == "a,b"


def test_prompt_template_must_have_one_place():
    assert prompts(["{cat}"], "a {} {set}") == ["a {cat} {set}"]
    for template in ("a photo", "{} and {}"):
        with pytest.raises(SammiError, match="must hold one"):
            prompts(["cat"], template)
