"""Rules of the user: what they mean, and which wins."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from ir.errors import InputError
from ir.locations import Location, merge_locations
from passes.quant.rules import Rules, Site


def layer(path: str, cls: type[nn.Module] = nn.Conv2d) -> Location:
    return Location(path, f"{cls.__module__}.{cls.__qualname__}", "net.py", 3)


STEM = Site("conv_bn_act", merge_locations([layer("stem.conv"), layer("stem.bn", nn.BatchNorm2d)]))
FIRST = Site("conv_bn", layer("layer1.0.conv"))
HEAD = Site("linear", layer("head.fc", nn.Linear))
SUM = Site("aten.add.Tensor", Location("layer1.0", "net.Block", "net.py", 9))
SITES = (STEM, FIRST, HEAD, SUM)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("layer1", (FIRST, SUM)),
        ("layer1.*", (FIRST, SUM)),
        ("stem.bn", (STEM,)),
        ("*.conv", (STEM, FIRST)),
        ("conv_bn", (FIRST,)),
        ("conv_bn*", (STEM, FIRST)),
        ("aten.add.Tensor", (SUM,)),
        ("stem.con", ()),
        (nn.Conv2d, (STEM, FIRST)),
        (nn.modules.conv._ConvNd, (STEM, FIRST)),
        (nn.Module, (STEM, FIRST, HEAD)),
        (nn.LayerNorm, ()),
        (lambda site: site.kind.startswith("conv"), (STEM, FIRST)),
    ],
)
def test_keys(key: Any, meant: tuple[Site, ...]) -> None:
    rules = Rules.of({key: None})
    assert tuple(site for site in SITES if rules.find(site)) == meant


def test_a_function_that_raises_is_named_with_the_place() -> None:
    rules = Rules.of({lambda site: len(site.kind) / 0 > 1: None})
    with pytest.raises(
        InputError, match=r"the rule .*<lambda> raised ZeroDivisionError of conv_bn: division"
    ) as caught:
        rules.find(FIRST)
    assert "net.py:3" in str(caught.value) and isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_last_rule_that_means_a_place_wins() -> None:
    rules = Rules.of({"*": 1, "layer1.*": 2, nn.Linear: None})
    assert [rules.choose(site, 0) for site in SITES] == [1, 2, None, 2]
    rules = Rules.of([("layer1.*", 2), ("*", 1)])
    assert [rules.choose(site, 0) for site in SITES] == [1, 1, 1, 1]
    assert Rules.of(None).choose(STEM, 7) == 7
    assert Rules.of(rules) is rules


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("layer2", r"the rule 'layer2' matches nothing in this program\n.*did you mean layer1"),
        ("conv_bm", r"the rule 'conv_bm' matches nothing in this program\n.*did you mean conv_bn"),
        ("xyz", r"kinds are aten.add.Tensor, conv_bn, conv_bn_act, linear; modules are head, head.fc, layer1"),
        (nn.LayerNorm, r"the rule LayerNorm matches nothing in this program\n.*kinds are"),
        (lambda site: False, "matches nothing in this program"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(key: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rules.of({"stem": None, key: None}).check(SITES)
    Rules.of({"stem": None}).check(SITES)


@pytest.mark.parametrize(
    "rules", [["head"], [("head",)], {3: None}, [(None, None)], 3, "head", {nn.Linear(1, 1): None}]
)
def test_what_is_no_rule(rules: Any) -> None:
    with pytest.raises(InputError, match=r"is no pair|matches no places|is no mapping|give its path"):
        Rules.of(rules)
