"""What a run starts from: other people's weights, in the network that is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from listener import Listener
from torchvision import models

from alexnet_edge.errors import CheckpointError, UserError
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.layers import architecture
from alexnet_edge.progress import QuietReporter
from alexnet_edge.training import start
from alexnet_edge.training.recipe import RECIPES, TrainSettings
from alexnet_edge.training.start import first_model, first_preprocessing


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the file that torchvision publishes: its own network's state dict, with 5 classes, not 1000."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("torchvision") / "alexnet.pth"
    torch.save(models.alexnet(num_classes=5).state_dict(), path)
    return path


@pytest.mark.parametrize("init", ["torchvision", "file"])
def test_network_from_torchvisions_weights_answers_as_torchvisions_does(
    published: Path, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "torchvision_weights", lambda reporter: published)
    settings = TrainSettings(arch="torchvision", init=init if init == "torchvision" else str(published))
    recipe = settings.resolved()
    assert recipe == RECIPES["finetune"]
    arch = architecture("torchvision", 5)
    assert first_preprocessing(settings, recipe, arch) == preset("imagenet-224")
    listener = Listener()
    model, loaded = first_model(settings, recipe, arch, listener)
    reference = models.alexnet(num_classes=5)
    reference.load_state_dict(torch.load(published, weights_only=True))
    x_NCHW = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().logits(x_NCHW), reference.eval()(x_NCHW))
    assert loaded == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}
    assert listener.notes == []

    model, loaded = first_model(settings, recipe, architecture("torchvision", 7), listener)
    assert "fc8" not in loaded
    assert model.fc8.weight.shape == (7, 4096)
    assert torch.equal(model.fc7.weight, reference.classifier[4].weight)
    assert "has 5 outputs, not 7: it is trained anew" in listener.notes[0]


def test_weights_of_another_architecture_are_refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []
    monkeypatch.setattr(start, "torchvision_weights", lambda reporter: downloads.append(1))
    recipe, arch = RECIPES["finetune"], architecture("one-tower", 5)
    with pytest.raises(UserError, match="its own architecture: one-tower; add --arch torchvision"):
        first_model(TrainSettings(init="torchvision"), recipe, arch, QuietReporter())
    assert downloads == [], "nothing was downloaded for that"
    with pytest.raises(CheckpointError, match=r"conv1\.weight is \[64, 3, 11, 11\], not \[96, .*conv5\.weight is"):
        first_model(TrainSettings(init=str(published)), recipe, arch, QuietReporter())
