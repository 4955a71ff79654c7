from pathlib import Path

import pytest
import torch
from PIL import Image, ImageCms

import regnet
from regnet.errors import ConfigError, EngineError, ImageError
from regnet.prediction.images import BATCH_SIZE, predict_each

PHOTO = Path(__file__).parents[2] / "docs/photos/chelsea.png"


def test_a_photo_of_a_cat_is_classified():
    [result] = regnet.predict(PHOTO, topk=10)
    assert result.classes[0].label == "cat"
    assert sum(score.probability for score in result.classes) == pytest.approx(1)
    probabilities = [score.probability for score in result.classes]
    assert probabilities == sorted(probabilities, reverse=True)


def test_results_keep_the_order_of_the_images_and_do_not_depend_on_the_batch():
    grey = Image.new("RGB", (40, 40), "grey")
    images = [PHOTO, grey] * (BATCH_SIZE - 3)
    results = regnet.predict(images)
    assert [r.image for r in results] == [str(PHOTO), ""] * (BATCH_SIZE - 3)
    alone = regnet.predict(grey)[0]
    for result in results[1::2]:
        assert [s.label for s in result.classes] == [s.label for s in alone.classes]
        assert result.classes[0].probability == pytest.approx(alone.classes[0].probability)


def test_a_bad_image_is_an_error_or_a_result(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    with pytest.raises(ImageError, match=r"bad.jpg: not an image"):
        regnet.predict([PHOTO, bad])
    first, failed, last = predict_each([PHOTO, bad, PHOTO])
    assert failed.error
    assert failed.classes == ()
    assert first == last
    assert first.classes[0].label == "cat"


def test_models_without_names_of_classes_number_them():
    model = regnet.create("regnetx_002", num_classes=3)
    [result] = regnet.predict(PHOTO, model)
    assert {score.label for score in result.classes} == {"class 0", "class 1", "class 2"}
    assert model.training
    assert regnet.predict(PHOTO, model) == [result]


def test_models_that_cannot_classify_photos_are_refused():
    with pytest.raises(ConfigError, match="takes images of 2 channels, but image files have"):
        regnet.predict(PHOTO, regnet.create("regnetx_002", in_chans=2))
    with pytest.raises(ConfigError, match="no classifier"):
        regnet.predict(PHOTO, regnet.create("regnetx_002", features_only=True))
    with pytest.raises(ConfigError, match="no classifier; create it with num_classes"):
        regnet.predict(PHOTO, regnet.create("regnetx_002", num_classes=0))


def test_models_of_other_dtypes_can_predict():
    model = regnet.create("regnety_cifar", pretrained=True, dtype=torch.bfloat16)
    assert regnet.predict(PHOTO, model)[0].classes[0].label == "cat"


@pytest.mark.parametrize("topk", [0, 11, 3.0, True])
def test_topk_outside_its_range_is_refused(topk):
    with pytest.raises(ConfigError, match=f"between 1 and the number of classes, 10; got {topk}"):
        regnet.predict(PHOTO, topk=topk)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile causes it
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_wrapped_models_can_predict(wrap):
    model = regnet.create("regnety_cifar", pretrained=True)
    wrapped = wrap(model)
    assert regnet.preprocess(wrapped) == regnet.preprocess(model)
    [result] = regnet.predict(PHOTO, wrapped)
    assert result.classes[0].label == "cat"


def test_what_is_no_model_is_named():
    with pytest.raises(ConfigError, match="a network of this library, or a name, got pathlib"):
        regnet.predict("regnety_cifar", PHOTO)


def test_outputs_that_are_not_finite_are_refused():
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    with torch.no_grad():
        model.head.fc.bias.fill_(float("nan"))
    with pytest.raises(EngineError, match="are not finite; check the weights"):
        regnet.predict(Image.new("RGB", (32, 32)), model)


def test_lab_images_are_converted_and_not_blended():
    rgb = Image.new("RGB", (32, 32), (200, 40, 60))
    to_lab = ImageCms.buildTransformFromOpenProfiles(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(rgb, to_lab).resize((32, 32))
    look = regnet.preprocess("regnety_cifar")
    assert torch.equal(look(lab), look(lab.convert("RGB")))
    assert look(lab).std() > 0.5


def test_an_exported_feature_network_is_refused_by_name(tmp_path):
    model = regnet.create("regnety_cifar", features_only=True)
    regnet.export(model, tmp_path / "maps.pt2")
    with pytest.raises(ConfigError, match="this model has no classifier"):
        regnet.predict(Image.new("RGB", (32, 32)), str(tmp_path / "maps.pt2"), trust=True)
