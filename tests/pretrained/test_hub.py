"""Where a published network is sought, with a made hub and a made release: there is no network."""

import io
import json
import shutil
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from urllib.error import URLError

import pytest

from fewstep.errors import InputError
from fewstep.pretrained import hub as hub_module
from fewstep.pretrained.folder import find_files
from fewstep.pretrained.hub import AVERAGED, EMA, find_folder

STEM = "diffusion_pytorch_model"
WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.bin")
GOOGLE = "google/ddpm-cifar10-32"


@pytest.fixture
def weights(home):
    folder = home / "weights"
    folder.mkdir(parents=True)
    return folder


def refusal(name):
    with pytest.raises(InputError) as told:
        find_folder(name)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one network; what is asked of it is noted in `asked`, what it has in `files`."""
    import huggingface_hub

    class Hub:
        asked: list[list[str]] = []
        files = ["config.json", "scheduler_config.json", "README.md", *WEIGHTS]
        cached = tmp_path / "hub"
        contents: dict[str, str] = {}

    def snapshot_download(name, *, allow_patterns):
        Hub.asked.append(allow_patterns)
        for file in Hub.files:
            if not any(fnmatch(file, pattern) for pattern in allow_patterns):
                continue
            (Hub.cached / file).parent.mkdir(parents=True, exist_ok=True)
            (Hub.cached / file).write_text(Hub.contents.get(file, "{}"))
        Hub.cached.mkdir(exist_ok=True)
        return str(Hub.cached)

    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return Hub


def test_a_path_comes_first(hub, weights, tmp_path, monkeypatch):
    (tmp_path / "google" / "ddpm-cifar10-32").mkdir(parents=True)
    (weights / GOOGLE).mkdir(parents=True)
    assert find_folder(str(tmp_path / "google")) == tmp_path / "google"
    monkeypatch.chdir(tmp_path)
    assert find_folder(GOOGLE) == Path(GOOGLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder("~/google") == tmp_path / "google"
    assert not hub.asked


def put(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


def test_then_a_folder_of_that_name_among_the_weights(hub, weights):
    for name in ("mine", GOOGLE):
        put(weights / name)
        assert find_folder(name) == weights / name
    assert not hub.asked


def test_empty_folders_among_the_weights_hold_no_network(hub, weights):
    (weights / GOOGLE).mkdir(parents=True)
    (weights / EMA).mkdir()
    assert find_folder(GOOGLE) == hub.cached
    (weights / EMA / f"{EMA}.zip").touch()  # an archive that was not unpacked
    put(weights / EMA / EMA / "unet")  # and one that was unpacked a level too deep
    assert find_folder(GOOGLE) == hub.cached


def test_averaged_weights_are_taken_for_the_raw_ones_and_it_is_said(hub, weights, capsys):
    assert AVERAGED == {GOOGLE: EMA}
    put(weights / GOOGLE)
    put(weights / EMA)
    assert find_folder(GOOGLE) == find_folder(EMA) == weights / EMA
    assert f"using the averaged weights in {weights / EMA}" in capsys.readouterr().err
    assert find_folder("google") == weights / "google" and not hub.asked


def test_the_hub_is_asked_for_settings_and_one_file_of_weights(hub, weights):
    assert find_folder(GOOGLE) == hub.cached
    assert len(hub.asked) == 2
    there = {path.name for path in hub.cached.iterdir()}
    assert there == {"config.json", "scheduler_config.json", WEIGHTS[0]}


INDEX = f"{STEM}.safetensors.index"
FORMS = [
    [f"unet/{WEIGHTS[0]}"],
    [WEIGHTS[1]],
    [f"unet/{WEIGHTS[1]}"],
    [f"unet_ema/{WEIGHTS[0]}", "unet_ema/config.json"],
    [f"{INDEX}.json", f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00002-of-00002.safetensors"],
    [f"unet/{STEM}.bin.index.json", f"unet/{STEM}-00001-of-00001.bin"],
    [f"unet/{STEM}.fp16.safetensors"],
    [f"unet/{STEM}.fp16.bin"],
    [f"unet/{INDEX}.fp16.json", f"unet/{STEM}.fp16-00001-of-00001.safetensors"],
    [f"unet/{INDEX}.fp16.json", f"unet/{STEM}-00001-of-00001.fp16.safetensors"],
    [f"unet/{STEM}.non_ema.bin"],
]


@pytest.mark.parametrize("files", FORMS, ids=lambda files: files[0])
def test_other_forms_on_the_hub(hub, weights, files):
    hub.files = ["unet/config.json", "scheduler/scheduler_config.json", "vae/config.json", *files]
    assert find_folder(GOOGLE) == hub.cached
    assert all((hub.cached / file).exists() for file in files)
    assert not (hub.cached / "vae").exists()
    assert (hub.cached / "scheduler" / "scheduler_config.json").exists()


def test_weights_of_another_network_are_not_downloaded(hub, weights):
    hub.files = ["model_index.json", "unet/config.json", f"unet/{WEIGHTS[0]}"]
    hub.contents["unet/config.json"] = '{"_class_name": "UNet2DConditionModel"}'
    assert "a U-Net with a text condition" in refusal(GOOGLE)
    hub.contents["model_index.json"] = '{"_class_name": "LDMPipeline", "vqvae": []}'
    assert "LDMPipeline: its network works on the latents" in refusal(GOOGLE)
    hub.files = ["README.md", "pytorch_model.bin"]
    shutil.rmtree(hub.cached)
    assert "is no diffusers checkpoint: it lacks config.json" in refusal(GOOGLE)
    assert not list(hub.cached.rglob("*.safetensors"))


def test_only_the_best_form_is_downloaded(hub, weights):
    variants = [f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors", f"{STEM}.fp16.bin"]
    hub.files = ["config.json", *WEIGHTS, *variants]
    files = find_files(find_folder(GOOGLE))
    assert files.weights == (hub.cached / WEIGHTS[0],)
    assert {path.name for path in hub.cached.iterdir()} == {"config.json", WEIGHTS[0]}


def test_a_network_without_weights_says_so(hub, weights):
    hub.files = ["config.json", "model.ckpt"]
    assert f"failed (it holds no {STEM}.safetensors or .bin)" in refusal(GOOGLE)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub's real client, told that there is no network; its cache."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_a_network_one_line_says_what_goes_where(weights, offline):
    line = refusal(GOOGLE)
    assert line.startswith(
        f"there is no folder {GOOGLE}, and downloading huggingface.co/{GOOGLE} failed"
    )
    assert line.endswith(f"go online, or put its folder at {weights / GOOGLE}")
    assert "failed" in refusal("a--b/c")  # what the client takes for no name at all


def test_without_the_hubs_client_one_line_says_how_to_install_it(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refusal(GOOGLE)
    assert line.startswith(
        f"downloading {GOOGLE} needs huggingface-hub: pip install 'fewstep[hub]'"
    )
    assert line.endswith(f"or put its folder at {weights / GOOGLE}")


def test_what_the_hubs_client_has_kept_is_found_without_a_network(weights, offline):
    """A cache as the client lays it out."""
    repository = offline / "models--google--ddpm-cifar10-32"
    snapshot = repository / "snapshots" / ("a" * 40)
    for path, text in (
        (repository / "refs" / "main", "a" * 40),
        (snapshot / "config.json", "{}"),
        (snapshot / WEIGHTS[1], "weights"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert find_folder(GOOGLE) == snapshot


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/no/such/place", "a/b/c", "../x/y"])
def test_what_can_be_no_name_of_the_hub_is_not_asked_there(hub, weights, name):
    assert "OWNER/NAME" in refusal(name) and str(weights) in refusal(name)
    assert not hub.asked


def release(monkeypatch, members):
    """The release is a zip of these members, or raw bytes, or nothing."""
    packed = io.BytesIO()
    if isinstance(members, dict):
        with zipfile.ZipFile(packed, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        packed.write(members or b"")

    def urlopen(url, timeout):
        assert url == hub_module.EMA_URL
        if members is None:
            raise URLError("no network")
        return io.BytesIO(packed.getvalue())

    monkeypatch.setattr("fewstep.download.urlopen", urlopen)


GOOD = {
    f"{EMA}/model_index.json": "{}",
    f"{EMA}/unet/config.json": json.dumps({"sample_size": 32}),
    f"{EMA}/unet/{WEIGHTS[1]}": "weights",
    f"{EMA}/scheduler/scheduler_config.json": "{}",
}


def test_the_release_is_downloaded_and_unpacked(weights, monkeypatch, capsys):
    release(monkeypatch, {**GOOD, "../../evil.bin": "x", "/etc/config.json/evil": "x"})
    assert find_folder(EMA) == weights / EMA
    there = {str(p.relative_to(weights)) for p in weights.parent.rglob("*") if p.is_file()}
    assert there == {
        f"{EMA}/unet/config.json",
        f"{EMA}/unet/{WEIGHTS[1]}",
        f"{EMA}/scheduler/scheduler_config.json",
    }
    told = capsys.readouterr().err
    assert "has SHA-256 " in told and "none was published to compare it with" in told
    release(monkeypatch, None)
    assert find_folder(GOOGLE) == weights / EMA


def test_paths_of_the_archive_are_not_trusted(weights, monkeypatch):
    bad = {
        f"../../../unet/{WEIGHTS[0]}": "w",
        "/tmp/unet/../config.json": "{}",
        "C:\\x\\config.json": "{}",
    }
    release(monkeypatch, bad)
    folder = find_folder(EMA)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there == {f"unet/{WEIGHTS[0]}", "config.json"}
    assert {p.name for p in weights.iterdir()} == {EMA}


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (None, "cannot download"),
        (b"<html>not found</html>", "is a damaged archive"),
        ({"readme.txt": "x"}, "holds no diffusion_pytorch_model.safetensors or .bin"),
        ({f"{EMA}/unet/config.json": "{}"}, "holds no diffusion_pytorch_model.safetensors or .bin"),
    ],
)
def test_a_release_that_fails_leaves_nothing(weights, monkeypatch, members, told):
    release(monkeypatch, members)
    line = refusal(EMA)
    assert told in line and hub_module.EMA_URL in line
    if members is None:
        assert f"unpack it as {weights / EMA}" in line
    assert not list(weights.iterdir())


def test_a_flipped_byte_in_the_release_is_found(weights, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in GOOD.items():
            file.writestr(name, content)
    content = packed.getvalue()
    release(monkeypatch, content.replace(b"weights", b"weighty"))
    assert "damaged archive" in refusal(EMA) and not list(weights.iterdir())


def test_a_release_of_any_size_is_refused_before_it_is_unpacked(weights, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in GOOD:
            file.writestr(name, bytes(2 * 10**7))
    release(monkeypatch, packed.getvalue())
    assert "claims 80,000,000 bytes" in refusal(EMA) and not list(weights.iterdir())
