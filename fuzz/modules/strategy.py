"""A strategy for modules as source text, with inputs and modes, as users may write them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import attrs
import torch
from hypothesis import strategies as st

from compiler.equality.observation import foreign_seeded, seeded
from fuzz.modules import recipes_data as module_recipes_data
from fuzz.modules import recipes_layers as module_recipes_layers
from fuzz.modules import recipes_memory as module_recipes_memory
from fuzz.modules import recipes_python as module_recipes_python
from fuzz.modules.case import WAYS, InputSpec, ModuleCase
from fuzz.modules.recipes import Recipe, follow
from fuzz.modules.steps import STEPS
from fuzz.modules.writer import LARGEST, Writer

_SHAPES = (
    (2, 3), (2, 3, 4, 4), (2, 4, 4), (1, 4, 4, 4), (3, 3, 3, 3), (1, 3, 1, 1), (2, 2, 2, 2), (4,), (), (1, 1), (3, 3),
    (4, 4, 4), (2, 2, 4, 4, 4), (0, 3), (2, 3, 0), (1, 4, 1), (1, 2, 3, 3, 3), (0, 3, 4, 4), (), (2, 1, 2, 2, 2),
)  # fmt: skip
RECIPES: dict[str, Recipe] = {
    recipe.kind: recipe
    for recipe in (
        *(*module_recipes_memory.RECIPES, *module_recipes_layers.RECIPES),
        *(*module_recipes_python.RECIPES, *module_recipes_data.RECIPES),
    )
}
"""The kinds of Python around a graph, by name."""
_SEEDS = st.integers(0, 99)
_DTYPES = (torch.float32,) * 5 + (torch.float64, torch.float16, torch.bfloat16, torch.float16, torch.bfloat16)


@st.composite
def _second_input(draw: st.DrawFn, first: InputSpec) -> tuple[InputSpec, ...]:
    """Return no second input, a second tensor, or the same object again."""
    if not draw(st.booleans()):
        return ()
    kind = draw(st.sampled_from(("new", "bool", "int", "same")))
    of = {"int": torch.int64, "bool": torch.bool}.get(kind, first.dtype)
    same = kind == "same"
    return (InputSpec("y", first.shape, of, first.channels_last and same, seed=11, same_as="x" if same else None),)


@st.composite
def _inputs(draw: st.DrawFn, dtype: torch.dtype) -> tuple[InputSpec, ...]:
    shape = draw(st.sampled_from(_SHAPES))
    last = _seldom(draw, 4) and len(shape) == 4
    special = _seldom(draw, 8)
    first = InputSpec("x", shape, dtype, last, special, draw(st.integers(0, 9)))
    third = (InputSpec("z", shape, dtype, seed=12, keyword=True),) if _seldom(draw, 5) else ()
    return (first, *draw(_second_input(first)), *third)


def _seldom(draw: st.DrawFn, one_of: int) -> bool:
    """Return True in one of so many draws; draws shrink towards False.

    Call it before other conditions are tested: otherwise these would not shrink away, as that would add a draw.
    """
    return draw(st.integers(1, one_of)) == one_of


@st.composite
def _inputs_for(draw: st.DrawFn, recipe: Recipe, dtype: torch.dtype) -> tuple[InputSpec, ...]:
    shape = draw(st.sampled_from(recipe.shapes))
    first = InputSpec("x", shape, dtype, _seldom(draw, 4) and len(shape) == 4, seed=draw(st.integers(0, 9)))
    if not recipe.keywords:
        return (first,)
    named = [
        attrs.evolve(first, keyword=True) if name == "x" else InputSpec(name, shape, dtype, seed=20 + i, keyword=True)
        for i, name in enumerate(recipe.keywords)
    ]
    return tuple(named) if "x" in recipe.keywords else (first, *named)


@st.composite
def _kind_of(draw: st.DrawFn, kinds: tuple[str, ...]) -> str:
    """Return one of some kinds: first a family, so that small families are not rare."""
    families: dict[str, list[str]] = {}
    for kind in kinds:
        families.setdefault(RECIPES[kind].family, []).append(kind)
    return draw(st.sampled_from(families[draw(st.sampled_from(tuple(families)))]))


def _follow(w: Writer, recipe: Recipe) -> str | None:
    """Write a recipe for the newest value that is like the input, or for the input; return the name of its value."""
    first = w["x"].shape
    alike = [name for name in w.values if w[name].shape == first and w[name].dtype == w.dtype]
    mark = len(w.setup)
    made = follow(recipe, w, "x" if recipe.on_input else alike[-1])
    if made is None:
        w.roll_back(mark)
    return made


def _grow(w: Writer, max_ops: int) -> None:
    for spec in w.inputs:
        if spec.keyword and spec.name == "z":
            w.let(f"x if {spec.name} is None else x + {spec.name}")
        elif spec.dtype == torch.int64:
            w.layer("nn.Embedding(2, 4)", spec.name)
        elif spec.dtype == torch.bool:
            w.let(f"torch.where({spec.name}, x, 0.0)")
    for _ in range(max_ops):
        if not w.draw(_step(w)):
            break


@st.composite
def _step(draw: st.DrawFn, w: Writer) -> bool:
    """Write a step, or return False to stop. As a strategy of its own, a step shrinks away with all its draws."""
    if draw(st.integers(0, 15)) == 0:
        return False
    usable = [n for n in w.values if w[n].is_floating_point() and w[n].numel() <= LARGEST and w[n].dim() <= 5]
    outer, w.draw = w.draw, draw
    try:
        source = usable[-1] if w.integer(0, 3) < 3 else w.one_of(*usable)
        mark, written = len(w.setup), len(w.body)
        w.one_of(*STEPS)(w, source)
        if len(w.body) == written and not w.flag():  # else it stays as an unused layer
            w.roll_back(mark)
    finally:
        w.draw = outer
    return True


def _returned(w: Writer, wanted: str | None = None) -> str:
    a = w.values[-1]
    if wanted is not None:
        return wanted if a == wanted or w.flag() else f"{a}, {wanted}"
    if w.integer(0, 2) < 2:
        return a
    b = w.one_of(*w.values)
    return w.one_of(f"{a}, {b}", f'{{"a": {a}, "b": {b}}}', f"{a}, None", f"{a}, {a}", f"{a}, x", f"[{a}, ({b}, None)]")


@st.composite
def modules(draw: st.DrawFn, max_ops: int = 12, kinds: Sequence[str] = ()) -> ModuleCase:
    """Return a strategy for modules as source text, each with its inputs, weights and modes.

    Every statement was run on the inputs when it was written, so each module runs. Modules mutate intermediate values,
    views of them, buffers, and sometimes inputs. One in three has some Python around its graph: layers that override
    their class, state outside of buffers, questions to the surroundings.

    Args:
        draw: of hypothesis.
        max_ops: the largest number of steps; a step is one to five statements.
        kinds: names of `RECIPES`, of which each module has one.
    """
    recipe = None
    if kinds or _seldom(draw, 3):
        recipe = RECIPES[draw(_kind_of(tuple(kinds) or tuple(RECIPES)))]
    dtype = draw(st.sampled_from(_DTYPES))
    specs = draw(_inputs(dtype) if recipe is None else _inputs_for(recipe, dtype))
    training = _seldom(draw, 4 if recipe is None else 2)
    wanted = None
    with warnings.catch_warnings(), seeded(0), foreign_seeded(0):
        warnings.simplefilter("ignore")
        writer = Writer(draw, specs, dtype, training, writes_inputs=recipe is None and _seldom(draw, 3))
        if recipe is None:
            _grow(writer, max_ops)
        else:
            if "**" in recipe.signature:
                writer.values = ["x"]  # the others do not have names in `forward`
            steps = draw(st.integers(0, max_ops // 4))
            _grow(writer, 0 if recipe.base else steps)
            wanted = _follow(writer, recipe)
            _grow(writer, 0 if recipe.base else max_ops // 4 - steps)
    returned = _returned(writer, wanted)
    if recipe is not None:
        kind = recipe.kind if wanted is not None else ""
        ways = draw(
            st.sampled_from(((recipe.ways or ("export",)), ("export",), ("export", "fx"), ("export", "exported")))
        )
        return ModuleCase(writer.text(returned), specs, draw(_SEEDS), dtype, training, ways=ways, kind=kind)
    paths = [name for name, child in writer.module.named_modules() if name]
    modes = ((draw(st.sampled_from(paths)), not training),) if _seldom(draw, 5) and paths else ()
    sizes = [(s.name, d) for s in specs[:1] for d, n in enumerate(s.shape) if n > 1]
    dynamic = (draw(st.sampled_from(sizes)),) if _seldom(draw, 2) and sizes and len(specs) == 1 else ()
    ways = (*WAYS, "exported") if _seldom(draw, 8) else WAYS
    case = ModuleCase(writer.text(returned), specs, draw(_SEEDS), dtype, training, modes, dynamic, ways)
    return case if not modes or _runs(case) else attrs.evolve(case, modes=())


def _runs(case: ModuleCase) -> bool:
    """Return whether a module runs in its modes: batch norm in training needs several values per channel."""
    args, kwargs = case.arguments()
    with warnings.catch_warnings(), seeded(0), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            case.build()(*args, **kwargs)
        except (RuntimeError, ValueError):
            return False
    return True
