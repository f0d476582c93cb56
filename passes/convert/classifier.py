"""Flatten → Linear becomes a convolution over the pooled map."""

from __future__ import annotations

from typing_extensions import override

from ir.attributes import Ref
from ir.core import Operation, Value
from ir.opdef import Trait
from ir.types import Dim, TensorType, dims_equal, shapes_equal
from passes.canonicalize.base import shape_of
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Refusal
from passes.rewrite.rewriter import Rewriter

_FLATTENS = ("aten.reshape", "aten.flatten.using_ints")
_DROPOUT = ("aten.dropout",)


def _flatten_linear(p: PatternBuilder, links: tuple[str | Trait, ...]) -> Node:
    flat = p.op(_FLATTENS, p.any("x"), name="flatten")
    return p.linear(p.chain(links, flat, name="links"), p.any("weight"), p.any("bias", optional=True), name="linear")


def _keeps_batch_first(flatten: Operation) -> bool | None:
    """Whether the operation makes (N, C, H, W) into (N, C*H*W); None when that is not known."""
    before = flatten.operands[0]
    assert before is not None
    source, target = before.tensor_type, flatten.result.tensor_type
    if source.shape is None or target.shape is None:
        return None
    if len(source.shape) != 4 or len(target.shape) != 2:
        return False
    if flatten.name != "aten.reshape":
        # flatten to rank 2 from rank 4 merges either the last three dimensions or the first three
        return _start_dim(flatten) == 1
    first, second = source.shape[0], target.shape[0]
    if first is None or second is None:
        return None
    return dims_equal(first, second) and not dims_equal(first, 0)  # an empty batch may have any features


def _drops_units(flatten: Operation) -> bool:
    """Whether the operation certainly makes a 4-d map into (N, C) by dropping dimensions of size 1.

    A norm of the channels of a pooled map moves them last, and canonicalization leaves them there: (N, 1, 1, C).
    """
    source, target = shape_of(flatten.operands[0]), shape_of(flatten.result)
    if source is None or target is None or len(source) != 4 or len(target) != 2:
        return False
    return shapes_equal(_without_units(source), _without_units(target))


def _without_units(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(size for size in shape if not dims_equal(size, 1))


def _start_dim(flatten: Operation) -> int:
    start, end = flatten.attributes["start_dim"], flatten.attributes["end_dim"]
    return int(start) if end in (-1, 3) and start >= 0 else -1


def _map_of(x: Value) -> tuple[Dim | None, Dim | None, Dim | None] | None:
    """Return what is known of (C, H, W) of the map; None when nothing is."""
    type_ = x.type
    if isinstance(type_, TensorType) and type_.shape is not None:
        return type_.shape[-3:] if len(type_.shape) == 4 else None
    # Nothing is known of the type; but an adaptive pool says its result's H and W, and what follows keeps them.
    op = x.defining_op
    while op is not None and (op.opdef.has(Trait.ACTIVATION) or op.name == "aten.dropout"):
        source = op.operands[0]
        op = None if source is None else source.defining_op
    if op is not None and op.name == "aten.adaptive_avg_pool2d" and _has_rank_of_map(op.operand_values[0]):
        # a size that the program computes is an operand
        height, width = [None if isinstance(size, Ref) else size for size in op.attributes["output_size"]]
        return None, height, width
    return None


def _has_rank_of_map(x: Value) -> bool:
    """Whether a value of unknown type certainly has at most 4 dimensions: a pool to 1 x 1 takes any number.

    Convolutions and other pools take no more, and what is elementwise, normalizes or concatenates keeps the number.
    """
    pending, seen = [x], {x}
    while pending:
        value = pending.pop()
        if not isinstance(value.type, TensorType):
            return False
        op, rank = value.defining_op, value.type.rank
        if rank is not None:
            if rank > 4:
                return False
        elif op is None:
            return False
        elif not _takes_maps(op):
            keeps = op.opdef.has(Trait.ELEMENTWISE) or op.opdef.has(Trait.NORMALIZES) or op.opdef.has(Trait.DROPOUT)
            if not keeps and op.name != "aten.cat":
                return False
            found = [v for v in op.operand_values if v not in seen]
            pending += found
            seen.update(found)
    return True


def _takes_maps(op: Operation) -> bool:
    if op.opdef.has(Trait.CONV):
        return op.input("weight").tensor_type.rank == 4
    return op.name == "aten.max_pool2d" or op.name == "aten.avg_pool2d"


def _in_features(m: Match) -> Dim | None:
    weight = m.weight.type
    if isinstance(weight, TensorType) and weight.shape is not None and len(weight.shape) == 2:
        return weight.shape[1]
    return None


def _refusal(m: Match, window: str) -> str | Refusal | None:
    """Return why the flattened map is not certainly a batch of maps, or None where it is."""
    flatten: Operation = m.flatten
    where = f"`{flatten.location.where}`"
    batch_first = _drops_units(flatten) or _keeps_batch_first(flatten)
    if batch_first is False:
        return Refusal(f"{flatten.name} at {where} does not flatten a 4-d map to 2-d", near=False)
    if _in_features(m) is None:
        return f"the weight of the linear at `{m.linear.location.where}` has no known shape"
    if _in_features(m) == 0:
        return f"the linear at `{m.linear.location.where}` takes no features; a convolution takes no empty map"
    out_features = m.weight.tensor_type.shape[0]
    if out_features == 0:
        return f"the linear at `{m.linear.location.where}` gives no features; a convolution has at least one channel"
    if m.bias is not None and not shapes_equal(m.bias.tensor_type.shape, (out_features,)):
        # a linear broadcasts it, a convolution does not
        return f"the bias of the linear at `{m.linear.location.where}` is {m.bias.type}, not {out_features} numbers"
    if batch_first is None:
        # Without shapes, the rank is proved by the linear: from a batch-less (C, 1, 1) it would get one feature.
        proved = flatten.name == "aten.flatten.using_ints" and _start_dim(flatten) == 1
        if not proved or _map_of(m.x) is None or _in_features(m) == 1:
            return Refusal(
                f"the shape that {flatten.name} at {where} flattens is unknown; {window} cannot be proved", warn=True
            )
    return None


def _rebuild(m: Match, b: Rewriter, x: Value, kernel: tuple[Dim, Dim, Dim]) -> Value:
    """Build links → conv2d → flatten on the map `x`; the weight is a view of the linear's."""
    for link in m.links:
        operation = Operation(
            link.opdef,
            (x, *link.operands[1:]),
            dict(link.attributes),
            [x.tensor_type],
            location=link.location,
        )
        with b.at(link):  # a dropout stays in the order in which dropouts draw
            x = b.insert(operation).result
    weight: Value = m.weight
    out_features = weight.tensor_type.shape[0]  # type: ignore[index]
    location = m.linear.location
    view = b.op("aten.reshape", weight, (out_features, *kernel), location=location).result
    conv = b.op("aten.conv2d", x, view, m.bias, location=location).result
    result: TensorType = m.linear.result.tensor_type
    if result.is_known:
        return b.op("aten.reshape", conv, result.shape, location=m.flatten.location).result
    return b.op("aten.flatten.using_ints", conv, 1, location=m.flatten.location).result


_CLASSIFIER = Example("""
    parameter %w : f32[o, c]
    parameter %b : f32[o]
    graph(%x : f32[n, c, 1, 1]) {
      %flat = aten.flatten.using_ints(%x) {start_dim=1}
      %act = aten.relu(%flat)
      %y = aten.linear(%act, %w, %b)
      return %y
    }
""")
_POOL = "%pool = aten.adaptive_avg_pool2d(%sum) {output_size=[1, 1]}"
_POOLED = _CLASSIFIER.changed(
    ("parameter %b", "parameter %k : f32[c, a, 1, 1] parameter %b"),
    ("c, 1, 1]) {", "a, h, w]) { %c = aten.conv2d(%x, %k, None) %sum = aten.add.Tensor(%c, %c) " + _POOL),
    ("ints(%x)", "ints(%pool)"),
)
_WINDOW = _CLASSIFIER.changed(("1, 1]", "h, 2]"), ("[o, c]", "[o, c*h*2]"))


class FlattenLinearToConv1x1Pattern(Pattern):
    """linear(links(flatten(x)), w, b) = flatten(conv2d(links(x), w[:, :, None, None], b)), x: f[N, C, 1, 1]

    A map of shape (N, 1, 1, C), or with its sizes of 1 elsewhere, is reshaped first. `links` are elementwise
    activations and dropout: they commute with flattening a 1x1 map.
    """

    is_conversion = True
    closed = True

    examples = (
        _CLASSIFIER,
        _CLASSIFIER.changed(
            ("[n, c, 1, 1]", "[n, 1, 1, c]"),
            ("flatten.using_ints(%x) {start_dim=1}", "reshape(%x) {shape=[n, c]}"),
            ("relu(%flat)", "dropout(%flat) {p=0.5, train=False}"),
        ),
        _WINDOW.changed(refused="not C x 1 x 1"),
        _CLASSIFIER.changed(("[n, c, 1, 1]", "[c, 1, 1]"), ("[o, c]", "[o, 1]"), refused="a 4-d map to 2-d"),
        _CLASSIFIER.changed(("%b : f32[o]", "%b : f32[1, o]"), refused="the bias of the linear"),
        _CLASSIFIER.changed(("[o, c]", "[0, c]"), ("f32[o]", "f32[0]"), refused="gives no features"),
        _CLASSIFIER.changed(  # it moves channels to the batch
            ("[n, c, 1, 1]", "[n, c*2, 1, 1]"),
            ("flatten.using_ints(%x) {start_dim=1}", "reshape(%x) {shape=[n*2, c]}"),
            refused="C x 1 x 1 cannot be proved",
            unknown="batch",
        ),
        _POOLED.changed(unknown="all"),
        _POOLED.changed(
            ("ints(%pool)", "ints(%drop)"),
            (_POOL, _POOL + " %drop = aten.dropout(%pool) {p=0.5, train=False}"),
            unknown="all",
        ),
        _POOLED.changed(  # of maps without a batch, too, the linear would get one feature
            ("[o, c]", "[o, 1]"), ("[c, a, 1, 1]", "[1, a, 1, 1]"), refused="C x 1 x 1 cannot be proved", unknown="all"
        ),
        _CLASSIFIER.changed(("start_dim=1", "start_dim=1, end_dim=3")),
        _CLASSIFIER.changed(  # the pool takes five dimensions, a convolution does not
            ("c, 1, 1]) {", "c, a, h, w]) { %sum = aten.neg(%x) " + _POOL),
            ("ints(%x)", "ints(%pool)"),
            ("[o, c]", "[o, c*a]"),
            refused="C x 1 x 1 cannot be proved",
            unknown="all",
        ),
        _CLASSIFIER.changed(refused="C x 1 x 1 cannot be proved", unknown="all"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return _flatten_linear(p, (Trait.ACTIVATION, *_DROPOUT))

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Demand a map of C x 1 x 1, flattened to (N, C)."""
        refusal = _refusal(m, "C x 1 x 1")
        if refusal is not None or _drops_units(m.flatten):
            return refusal
        known = _map_of(m.x)
        if known is None or known[1] is None or known[2] is None:
            return Refusal(
                f"the height and width of the map flattened at `{m.flatten.location.where}` are unknown", warn=True
            )
        if not (dims_equal(known[1], 1) and dims_equal(known[2], 1)):
            return f"the map flattened at `{m.flatten.location.where}` is {m.x.type}, not C x 1 x 1"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        channels = _in_features(m)
        assert channels is not None
        x: Value = m.x
        if _drops_units(m.flatten):
            wanted = (m.flatten.result.tensor_type.shape[0], channels, 1, 1)
            if not shapes_equal(x.tensor_type.shape, wanted):
                with b.at(m.flatten, m.flatten.location):
                    x = b.op("aten.reshape", x, wanted).result
        return _rebuild(m, b, x, (channels, 1, 1))


class FlattenLinearToConvPattern(Pattern):
    """linear(links(flatten(x)), w, b) = flatten(conv2d(links(x), w.view(out, C, H, W), b)), x: f[N, C, H, W]

    The window of the convolution is the whole map. Dropout is not a link here: on a map in
    channels_last it would draw its mask in another order.
    """

    is_conversion = True
    closed = True

    examples = (
        _WINDOW,
        _WINDOW.changed(("flatten.using_ints(%x) {start_dim=1}", "reshape(%x) {shape=[n, -1]}"), (", %b)", ", None)")),
        _WINDOW.changed(
            ("relu(%flat)", "leaky_relu(%flat) {negative_slope=0.5}"), ("start_dim=1", "start_dim=1, end_dim=3")
        ),
        _WINDOW.changed(("%b : f32[o]", "%b : f32[1]"), refused="the bias of the linear"),
        _CLASSIFIER.changed(refused="FlattenLinearToConv1x1Pattern converts it"),
        _WINDOW.changed(
            ("[n, c, h, 2]", "[n, c*2, h, 2]"),
            ("flatten.using_ints(%x) {start_dim=1}", "reshape(%x) {shape=[n*2, c*h*2]}"),
            refused="a map of static size cannot be proved",
            unknown="batch",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return _flatten_linear(p, (Trait.ACTIVATION,))

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Demand a map of a static size larger than 1x1 (the other conversion is for that one)."""
        refusal = _refusal(m, "a map of static size")
        if refusal is not None:
            return refusal
        known = _map_of(m.x)
        if known is None or not all(type(d) is int for d in known):
            return Refusal(f"the map flattened at `{m.flatten.location.where}` is {m.x.type}: its size is not static")
        if _drops_units(m.flatten) or known[1:] == (1, 1):
            return "the map is C x 1 x 1: FlattenLinearToConv1x1Pattern converts it"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        known = _map_of(m.x)
        assert known is not None
        channels, height, width = known
        assert channels is not None and height is not None and width is not None
        return _rebuild(m, b, m.x, (channels, height, width))
