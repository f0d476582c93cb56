"""Recipes for sizes that depend on data, and for regions of autocast."""

from __future__ import annotations

from fuzz.modules.recipes import ROWS, TOKENS, of, variants

SIZES = variants(
    "size from data",
    {
        "a mask": "$x + $x[$x > 0].sum()",
        "rows of a mask": of("$x + $y.exp().sum(0)", body="$y = $x[$x.flatten(1).amax(1) > 0.5].relu()"),
        "places": of("$x + torch.nonzero($y)[:, 0].sum()", body="$y = $x > 0"),
        "places by dimension": of("$x + $y.sum() * 0.1", body="$y = torch.where($x > 0)[-1].to($x.dtype)"),
        "masked_select": of("$x * $y.shape[0] + $y.clamp(max=1).sum()", body="$y = $x.masked_select($x < 0.5)"),
        "unique": of("$x + $y.shape[0]", body="$y = torch.unique(($x > 0).flatten())"),
        "written back": of("$y", body="$y = $x.clone()\n$y[$x > 0] = $y[$x > 0] * 2"),
        "added back": of(
            "$y",
            body="rows$n = torch.where($x.flatten(1).sum(1) > 0)[0]\n"
            "$y = torch.zeros_like($x).index_add_(0, rows$n, $x[rows$n] * 3)",
        ),
        "a number": of("$x * $y", body="$y = ($x > 0).sum().item()"),
        "a number that is a size": of(
            "$x + torch.ones($y + 1).sum()", body="$y = ($x > 0).sum().item()\ntorch._check($y >= 0)"
        ),
        "a layer": of("$x + self.fc$n($x[$x.flatten(1).sum(1) > 0]).sum()", setup="self.fc$n = nn.Linear($last, 2)"),
    },
    shapes=(*ROWS, *TOKENS),
    ways=("export",),
)

_REGION = 'with torch.autocast("cpu", dtype=torch.bfloat16{}):\n    $y = {}'
_SETUP = "self.fc$n = nn.Linear($last, $last)"

AUTOCAST = variants(
    "autocast region",
    {
        "a layer": of("$x + $y", body=_REGION.format("", "self.fc$n($x)"), setup=_SETUP),
        "a layer twice": of("$y * 2", body=_REGION.format("", "self.fc$n(self.fc$n($x)) + $x"), setup=_SETUP),
        "switched off": of("$y + 1", body=_REGION.format(", enabled=False", "self.fc$n($x)"), setup=_SETUP),
        "a product": of(
            "$x + $y.float()", body=_REGION.format("", "torch.softmax($x @ $x.transpose(-1, -2), -1) @ $x")
        ),
        "a norm": of(
            "$x + $y", body=_REGION.format("", "self.norm$n($x * 2)"), setup="self.norm$n = nn.LayerNorm($last)"
        ),
        "without gradients": of(
            "$x + $y.float()",
            body='with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):\n    $y = self.fc$n($x)',
            setup=_SETUP,
        ),
    },
    shapes=(*ROWS, *TOKENS),
    ways=("export",),
)

RECIPES = (*SIZES, *AUTOCAST)
