"""Published networks as extractors: sizes, names, hashes; DINOv2 against transformers' own."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewstep.errors import InputError
from fewstep.metrics.distances import load_lpips
from fewstep.metrics.extractors import INCEPTION_HASH, make_extractor
from fewstep.metrics.extractors.inception import InceptionNetwork
from fewstep.metrics.extractors.pretrained import IMAGENET_MEAN, IMAGENET_STD
from fewstep.metrics.extractors.resize import resize_images
from fewstep.metrics.extractors.trunks import TRUNKS, load_trunk


def images(n=2, channels=3, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def squeeze(home):
    """Random weights under the published name, with the classifier that torchvision's file has."""
    trunk = TRUNKS["squeeze"]()
    trunk.draw(torch.Generator().manual_seed(0))
    extra = {"classifier.1.weight": torch.zeros(3)}
    (home / "weights").mkdir(parents=True)
    save_file(trunk.state_dict() | extra, home / "weights" / "squeezenet1_1-features.safetensors")
    return trunk


def test_squeezenet_sees_what_imagenet_classifiers_see(squeeze):
    extractor = make_extractor("squeezenet")
    fitted = resize_images(images().float(), 224, "clean-bicubic").clamp(0, 255) / 255
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (IMAGENET_MEAN, IMAGENET_STD))
    normal = (fitted - mean) / std
    expected = squeeze.feature_maps(normal)[-1].mean((2, 3))
    found = extractor(images())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) and found.shape == (2, 512)
    assert (extractor.name, extractor.resize) == ("squeezenet", "clean-bicubic to 224")
    assert [m.shape[1] for m in extractor.feature_maps(images().float())] == list(squeeze.channels)


def test_a_loss_still_pulls_back_what_overshoots(squeeze):
    x = torch.full((1, 3, 32, 32), 270.0, requires_grad=True)
    sum(m.sum() for m in make_extractor("squeezenet").feature_maps(x)).backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


def test_another_resize_is_named_and_is_another_score(squeeze):
    clean, plain = make_extractor("squeezenet"), make_extractor("squeezenet", resize="tf1-bilinear")
    assert plain.resize == "tf1-bilinear to 224" and clean.hash == plain.hash
    assert not torch.allclose(clean(images()), plain(images()), rtol=1e-3)


def test_grey_images_are_seen_as_colour(squeeze):
    grey = images(channels=1)
    extractor = make_extractor("squeezenet")
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_features_do_not_depend_on_the_batch_and_take_no_gradient_unless_asked(squeeze):
    extractor = make_extractor("squeezenet")
    together = extractor(images(5))
    apart = torch.cat([extractor(part) for part in images(5).split(2)])
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-5) and not together.requires_grad
    x = images(1).float().requires_grad_()
    extractor.extract(x).features.sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


def test_the_hash_is_of_the_weights(squeeze, home):
    before = make_extractor("squeezenet").hash
    state = squeeze.state_dict()
    state["features.0.bias"][0] += 1
    save_file(state, home / "weights" / "squeezenet1_1-features.safetensors")
    assert make_extractor("squeezenet").hash != before


def test_weights_of_another_network_are_refused(home):
    (home / "weights").mkdir(parents=True)
    file = home / "weights" / "squeezenet1_1-features.safetensors"
    save_file({"features.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(InputError, match="weights file of squeezenet is for another network"):
        make_extractor("squeezenet")


def test_the_inception_extractor_is_the_network_behind_its_resize(home, monkeypatch):
    network = InceptionNetwork()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.normal_(generator=generator).mul_(0.05)
        if name.endswith("running_var"):
            value.fill_(1.0)
    state = network.state_dict()
    monkeypatch.setattr("fewstep.metrics.extractors.inception.load_weights", lambda name: state)
    extractor = make_extractor("inception")
    assert extractor.hash == INCEPTION_HASH == "6726825d0af5f729"
    output = next(extractor.iter_outputs(images()))
    direct = network(resize_images(images().float(), 299, "tf1-bilinear"))
    assert torch.equal(output.features, direct.features)
    assert torch.equal(output.logits, direct.logits)
    assert output.features.shape == (2, 2048) and output.logits.shape == (2, 1008)
    clean = make_extractor("inception", resize="clean-bicubic")
    planes = [
        [Image.fromarray(p, "F").resize((299, 299), Image.Resampling.BICUBIC) for p in image]
        for image in images().float().numpy()
    ]
    like_clean_fid = torch.from_numpy(np.array([[np.asarray(p) for p in i] for i in planes]))
    expected = network(like_clean_fid.clamp(0, 255)).features
    assert torch.allclose(clean(images()), expected, rtol=1e-4, atol=1e-4)


def test_missing_weights_are_told_of(home, monkeypatch):
    def refused(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("fewstep.download.urlopen", refused)
    for name in ("inception", "squeezenet", "resnet56-cifar10"):
        with pytest.raises(InputError, match=r"put .* into"):
            make_extractor(name)
    for name in TRUNKS:
        with pytest.raises(InputError, match=r"put .* into"):
            load_lpips(name)
    assert not (home / "weights").exists()  # a failed download leaves nothing behind


def test_trunks_of_torchvisions_files_drop_the_classifier(home, squeeze):
    state = load_trunk("squeeze").state_dict()
    assert all(torch.equal(value, squeeze.state_dict()[key]) for key, value in state.items())


def test_dinov2_is_transformers_class_token(home):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**small)).eval()
    model.save_pretrained(home / "weights" / "dinov2-large")
    extractor = make_extractor("dinov2")
    found = extractor(images())
    fitted = resize_images(images().float(), 224, "clean-bicubic").clamp(0, 255) / 255
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (IMAGENET_MEAN, IMAGENET_STD))
    normal = (fitted - mean) / std
    with torch.no_grad():
        expected = model(pixel_values=normal).pooler_output  # its normed class token
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert extractor.resize == "clean-bicubic to 224" and found.shape == (2, 32)


def test_a_folder_without_dinov2s_files_is_not_read(home, monkeypatch):
    transformers = pytest.importorskip("transformers")

    def offline(source):
        raise OSError("no network")

    (home / "weights" / "dinov2-large").mkdir(parents=True)
    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"from facebook/dinov2-large \(no network\)"):
        make_extractor("dinov2")
