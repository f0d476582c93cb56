"""Programs that crash the process are left out; similar ones are not."""

from __future__ import annotations

import pytest

from fuzz.calls.kernels import ends_the_process
from fuzz.programs.case import Case
from fuzz.programs.properties import Unusable
from graphwright.fuzz import check
from passes.canonicalize.identity import NoAlias

TEXT = """
program "convolution" {{
  argument "x" = input 0
  argument "w" = input 1
  argument "b" = input 2
  result = output 0
  graph(%x : f32[2, 4, 6, {width}], %w : f32[2, 4, 1, 1], %b : f32[2]) {{
    %y = aten.conv2d(%x, %w, %b) {{stride=[1, {stride}], padding=[0, {padding}], dilation=[1, {dilation}]}} : f32[2, 2, 6, {out}]
    return %y
  }}
}}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("width", "stride", "padding", "dilation", "out", "ends"),
    [
        (1, 3, 2, 2, 2, True),
        (2, 3, 2, 2, 2, False),
        (1, 1, 2, 2, 5, False),
        (1, 3, 0, 2, 1, False),
        (1, 3, 2, 1, 2, False),
    ],
)
def test_what_ends_the_process_is_left_out(
    width: int, stride: int, padding: int, dilation: int, out: int, ends: bool
) -> None:
    case = Case.seeded(TEXT.format(width=width, stride=stride, padding=padding, dilation=dilation, out=out))
    assert ends_the_process(case.build()) is ends
    without_bias = Case.seeded(
        TEXT.format(width=width, stride=stride, padding=padding, dilation=dilation, out=out).replace(
            "%w, %b)", "%w, None)"
        )
    )
    assert not ends_the_process(without_bias.build())
    if ends:
        with pytest.raises(Unusable):
            check(NoAlias, case)


def test_one_dimension_is_computed_as_two() -> None:
    # contiguous, it runs; case by case the layouts differ
    text = TEXT.format(width=1, stride=3, padding=2, dilation=2, out=2)
    for old, new in (
        ("conv2d", "conv1d"),
        ("[1, 3]", "[3]"),
        ("[0, 2]", "[2]"),
        ("[1, 2]", "[2]"),
        ("4, 6, 1]", "4, 1]"),
    ):
        text = text.replace(old, new)
    text = text.replace("f32[2, 4, 1, 1]", "f32[2, 4, 1]").replace("f32[2, 2, 6, 2]", "f32[2, 2, 2]")
    case = Case.seeded(text)
    assert ends_the_process(case.build())
    assert not ends_the_process(Case.seeded(text.replace("%w, %b)", "%w, None)")).build())
