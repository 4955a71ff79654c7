import pytest

from regnet.weights.keys import BYOBNET, PYCLS
from tests import golden

PAIRS = [
    (BYOBNET, "s1.b1.conv1.conv.weight", "stages.0.0.conv1_1x1.conv.weight"),
    (BYOBNET, "s3.b12.se.fc2.bias", "stages.2.11.attn.fc2.bias"),
    (BYOBNET, "stem.conv2.bn.weight", "stem.conv2.bn.weight"),
    (BYOBNET, "head.fc.bias", "head.fc.bias"),
    (PYCLS, "s2.b1.downsample.conv.weight", "s2.b1.proj.weight"),
    (PYCLS, "s2.b1.downsample.bn.running_var", "s2.b1.bn.running_var"),
    (PYCLS, "s4.b10.conv3.bn.bias", "s4.b10.f.c_bn.bias"),
    (PYCLS, "s1.b1.se.fc1.weight", "s1.b1.f.se.f_ex.0.weight"),
    (PYCLS, "final_conv.conv.weight", "head.conv.weight"),
    (PYCLS, "head.fc.weight", "head.fc.weight"),
]


@pytest.mark.parametrize(("table", "ours", "theirs"), PAIRS)
def test_keys_are_renamed_in_both_directions(table, ours, theirs):
    assert table.to_theirs(ours) == theirs
    assert table.to_ours(theirs) == ours


@pytest.mark.parametrize(
    "name", [n for n, r in golden.load("variants.json").items() if r["defined_in"] == "byobnet.py"]
)
def test_state_dicts_survive_conversion_to_a_format_and_back(name):
    theirs = dict(golden.load("state_dicts_timm.json.gz")[name])
    ours = BYOBNET.state_dict_to_ours(theirs)
    assert BYOBNET.state_dict_to_theirs(ours) == theirs
    assert list(ours.values()) == list(theirs.values())
    assert not [key for key in ours if key.startswith("stages")]
