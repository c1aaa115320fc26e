"""Single image files and archives contain exactly the generator's images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exporting import unet_generator
from fewstep import Denoiser, Flow, Generator, SampleSpec, Velocity, data, runs
from fewstep.backbones import MLPConfig
from fewstep.cli import main
from fewstep.drawing import generate
from fewstep.errors import InputError
from fewstep.image_files import save_archive, save_each


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "grey.safetensors"
    runs.save_generator(path, unet_generator(classes=3), None, {})
    return path


ONE = [(range(1), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))]


def images(run, count, **options):
    batches = generate(runs.load(run), count, steps=2, **options)
    return torch.cat([batch for _, batch in batches])


def test_each_file_is_one_image_and_they_are_a_data_set(grey, tmp_path, capsys):
    out = tmp_path / "new" / "each"
    command = ["sample", str(grey), "--each", str(out), "--steps", "2", "--seed", "3"]
    assert main([*command, "-n", "12", "--label", "2,0"]) == 0
    assert [path.name for path in sorted(out.iterdir())] == [f"{i:06}.png" for i in range(12)]
    expected = images(grey, 12, seed=3, labels=[2, 0])
    for path, image in zip(sorted(out.iterdir()), expected, strict=True):
        picture = Image.open(path)
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), image[0].numpy())
    # other programs, and ours, read them as they are
    again = data.load("folder", path=out)
    assert again.labels is None and again.with_channels(1).images.equal(expected)
    assert main(command) == 2
    assert "each is not an empty folder" in capsys.readouterr().err


def test_an_archive_is_that_of_guided_diffusion(grey, tmp_path):
    file = tmp_path / "x.npz"
    assert main(["sample", str(grey), "--npz", str(file), "--steps", "2", "-n", "7"]) == 0
    archive = np.load(file)
    assert archive["arr_0"].dtype == np.uint8 and archive["arr_1"].dtype == np.int64
    expected = images(grey, 7).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(archive["arr_0"], expected)
    assert archive["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_colours_and_several_batches(tmp_path):
    pixels = torch.randint(256, (11, 3, 4, 5), dtype=torch.uint8)
    batches = [(range(i, min(i + 4, 11)), pixels[i : i + 4]) for i in range(0, 11, 4)]
    assert list(save_each(batches, tmp_path / "each")) == [4, 8, 11]
    assert list(save_archive(batches, tmp_path / "x.npz", count=11)) == [4, 8, 11]
    for i, path in enumerate(sorted((tmp_path / "each").iterdir())):
        assert np.array_equal(np.asarray(Image.open(path)), pixels[i].permute(1, 2, 0))
    archive = np.load(tmp_path / "x.npz")
    assert archive.files == ["arr_0"]
    assert np.array_equal(archive["arr_0"], pixels.permute(0, 2, 3, 1))


def test_a_stopped_work_leaves_nothing(tmp_path):
    def batches():
        yield range(2), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        raise KeyboardInterrupt

    for work in (
        save_each(batches(), tmp_path / "a"),
        save_archive(batches(), tmp_path / "b", count=4),
    ):
        with pytest.raises(KeyboardInterrupt):
            list(work)
    assert not list(tmp_path.iterdir())
    # what a killed process leaves is cleared; a user's folder is not
    for leftover in (".a-0123abcd.tmp", "a/.a-0123abcd.tmp", "a.tmp"):
        (tmp_path / leftover).mkdir(parents=True)
        (tmp_path / leftover / "000009.png").touch()
    assert list(save_each(ONE, tmp_path / "a")) == [1]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    assert names == {"a/000000.png", "a.tmp/000009.png"}


@pytest.mark.parametrize("out", [".", "../here", "link", "new/../deep/each", "é [a], b"])
def test_any_empty_folder_is_filled(out, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if out == "link":
        (tmp_path / "target").mkdir()
        Path("link").symlink_to(tmp_path / "target")
    elif "new" in out:
        Path("new").mkdir()
    assert list(save_each(ONE, Path(out))) == [1]
    assert [path.name for path in Path(out).iterdir() if path.name != "new"] == ["000000.png"]
    assert Path("link").is_symlink() == (out == "link")


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels, tmp_path):
    rows = torch.zeros(1, channels, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match="only grey and RGB images"):
        list(save_each([(range(1), rows)], tmp_path / "a"))


@pytest.mark.parametrize("output", [["-o", "x.png"], ["--each", "x"], ["--npz", "x.npz"]])
def test_points_are_no_image_files(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = MLPConfig(width=8, depth=1).build(shape=(2,))
    generator = Generator(Denoiser(net, Flow(), Velocity()), SampleSpec((2,)))
    runs.save_generator(tmp_path / "points.safetensors", generator, None, {})
    assert main(["sample", "points.safetensors", *output]) == 2
    assert "samples of shape (2,)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["points.safetensors"]


@pytest.mark.parametrize(
    "outputs", [[], ["-o", "x.png", "--each", "x"], ["--each", "x", "--npz", "y"]]
)
def test_exactly_one_output(grey, outputs, capsys):
    assert main(["sample", str(grey), *outputs]) == 2
    assert "one of -o FILE, --gif FILE, --each DIR and --npz FILE" in capsys.readouterr().err
