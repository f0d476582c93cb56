"""The page of a compilation: the graph before and after, by what became of each operation and through which rule."""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from compiler.page.content import Detail, Entry, Line, Listing, Look, Page, ShownGraph, Spot
from compiler.page.drawing import INPUT, MODULE, OUTPUT, Drawing, Item, draw
from compiler.page.history import History, Rewrite, Step
from compiler.page.story import Deed, Story
from ir.core import Operation, Value
from ir.locations import Location
from ir.program import Program
from ir.text.printer import operation_texts
from passes.rewrite.remarks import OpSummary, Remark

KEPT, UNCHANGED, RESPELLED, REMOVED, BOUNDARY = "kept", "unchanged", "respelled", "removed", "boundary"
"""Looks beside those of the rules."""

_LOOKS = {
    KEPT: Look("stays: no rule fuses it", 42, "A computation that no fusion takes; its remark says why."),
    UNCHANGED: Look("stays: moves data only", None, "Reshapes, permutes and other operations that compute no numbers."),
    RESPELLED: Look("respelled", 200, "Brought into canonical form: the same values, another operation.", False),
    REMOVED: Look(
        "removed", 0, "Not in the result: dead, merged with an equal one, or computed once and for all.", False
    ),
    BOUNDARY: Look("input, output", None, "", False),
}
_FIRST_HUES = (145, 265, 215, 320, 180, 95, 20, 290, 240, 345, 65, 165)
_MOST_LINES = 60
_TOLD = ("missed", "kept", "skipped", "failed", "outside", "off", "validated", "unvalidated", "unchecked", "left out")


@attrs.frozen(eq=False)
class _Side:
    """One of the two graphs, while the page is made.

    Attributes:
        drawing: what is drawn.
        numbers: number of each operation in the history -> its item.
        texts: text of each operation.
    """

    drawing: Drawing
    numbers: dict[int, int]
    texts: dict[Operation, str]

    @classmethod
    def of(cls, program: Program, numbers: Iterable[int], history: History) -> _Side:
        """Draw a program whose operations have these numbers, in order."""
        drawing = draw(program, history.modules)
        items = drawing.operations
        placed = {
            number: items[op] for number, op in zip(numbers, program.graph.operations(), strict=True) if op in items
        }
        return cls(drawing, placed, operation_texts(program.graph))


def compilation_page(title: str, history: History, remarks: Sequence[Remark]) -> Page:
    """Return the page of a compilation.

    Args:
        title: the name of the model.
        history: what the passes did.
        remarks: what rules say of it.
    """
    return _Maker(title, history, remarks).page()


class _Maker:
    def __init__(self, title: str, history: History, remarks: Sequence[Remark]) -> None:
        self.title = title
        self.history = history
        self.story = Story(history)
        self.sides = (
            _Side.of(history.captured, range(history.captured.graph.num_operations), history),
            _Side.of(history.program, history.final, history),
        )
        self.remarks = _RemarkIndex(remarks)
        self.places = tuple(map(self._by_location, self.sides))
        self.looks: dict[str, Look] = dict(self._rule_looks())
        self.looks.update(_LOOKS)
        self.order = {name: number for number, name in enumerate(self.looks)}

    def _rule_looks(self) -> Iterable[tuple[str, Look]]:
        counts = Counter(
            (rewrite.kind, rewrite.rule) for step in self.history.steps for rewrite in step.rewrites if rewrite.is_told
        )
        ranked = sorted(counts, key=lambda key: (("fusion", "conversion", "rewrite").index(key[0]), -counts[key], key))
        for number, (kind, rule) in enumerate(ranked):
            hue = _FIRST_HUES[number] if number < len(_FIRST_HUES) else number * 137 % 360
            yield (
                rule,
                Look(f"{rule} ({counts[kind, rule]})", hue, f"a {kind} that was made {counts[kind, rule]} times"),
            )

    def page(self) -> Page:
        before, after = (len(side.numbers) for side in self.sides)
        return Page(
            title=self.title,
            summary=f"{before} operations before, {after} after",
            looks=tuple(self.looks.values()),
            graphs=tuple(self._graph(side) for side in (0, 1)),
            listings=(self._passes(), *self._remark_listings()),
        )

    # --- graphs ---

    def _graph(self, side: int) -> ShownGraph:
        drawing = self.sides[side].drawing
        numbers = {item: number for number, item in self.sides[side].numbers.items()}
        looks: list[int | None] = []
        details: list[Sequence[Detail]] = []
        for number, item in enumerate(drawing.items):
            op_number = numbers.get(number)
            if item.kind == MODULE:
                looks.append(None)
                details.append([Detail("Module", (Line(item.path, is_code=True),))])
            elif item.kind in (INPUT, OUTPUT):
                looks.append(self.order[BOUNDARY])
                details.append([])
            elif op_number is not None:
                look = self._look_after(op_number) if side else self._look_before(op_number)
                looks.append(self.order[look])
                details.append(self._details(side, item, op_number))
            else:
                looks.append(looks[item.parent])  # a part of a region
                details.append(list(_what(item, self.sides[side].texts)))
        return ShownGraph(("before", "after")[side], drawing, looks, details)

    def _look_before(self, number: int) -> str:
        deeds, found = self.story.became(number)
        told = _rules(deeds)
        if told:
            return told[0]  # the one that took the operation itself
        if not found:
            return REMOVED
        if any(self.remarks.is_kept(self.history.operations[each]) for each in found):
            return KEPT
        return RESPELLED if deeds else UNCHANGED

    def _look_after(self, number: int) -> str:
        deeds, _ = self.story.came_from(number)
        told = _rules(deeds)
        if told:
            return told[-1]
        if self.remarks.is_kept(self.history.operations[number]):
            return KEPT
        return RESPELLED if deeds else UNCHANGED

    def _details(self, side: int, item: Item, number: int) -> list[Detail]:
        assert item.operation is not None
        found = list(_what(item, self.sides[side].texts))
        deeds, others = self.story.became(number) if side == 0 else self.story.came_from(number)
        found.append(self._deeds(side, number, deeds, others))
        remarks = self.remarks.about(item.operation.name, item.operation.location)
        if side == 0:
            remarks = list(dict.fromkeys([*remarks, *self._kept_remarks(others)]))
        if remarks:
            found.append(
                Detail("Remarks", tuple(Line(f"{each.kind} · {each.rule}: {each.message}") for each in remarks))
            )
        return found

    def _kept_remarks(self, numbers: Iterable[int]) -> list[Remark]:
        operations = (self.history.operations[number] for number in numbers)
        return [each for op in operations for each in self.remarks.about(op.name, op.location) if each.kind == "kept"]

    def _deeds(self, side: int, number: int, deeds: Sequence[Deed], others: Sequence[int]) -> Detail:
        lines = [Line(self._told(deed)) for deed in deeds]
        if not deeds:
            lines.append(Line("unchanged" if side == 0 else "as in the captured program"))
        for other in others:
            spot = self._spot(1 - side, other)
            if spot is not None:
                summary = self.history.operations[other]
                lines.append(Line(f"{'→' if side == 0 else '←'} {_named(summary)}", spot))
        if side == 0 and not others:
            lines.append(Line("not in the result"))
        return Detail("What became of it" if side == 0 else "What it was made from", tuple(lines))

    def _told(self, deed: Deed) -> str:
        text = deed.title(self.history.steps)
        if deed.rewrite is None:
            return text
        return f"{text}: {self._change(deed.rewrite)}"

    def _change(self, rewrite: Rewrite) -> str:
        replaced, created = (
            ", ".join(_short(self.history.operations[number].name) for number in numbers) or "nothing"
            for numbers in (rewrite.replaced, rewrite.created)
        )
        return f"{replaced} → {created}"

    def _spot(self, side: int, number: int) -> Spot | None:
        item = self.sides[side].numbers.get(number)
        return None if item is None else (side, item)

    def _spots(self, numbers: Iterable[int]) -> tuple[Spot, ...]:
        found: dict[Spot, None] = {}
        for number in numbers:
            # what is in neither graph stands for what it was made from, and for what came of it
            for side, others in ((0, self.story.came_from(number)[1]), (1, self.story.became(number)[1])):
                for other in others:
                    spot = self._spot(side, other)
                    if spot is not None:
                        found[spot] = None
        return tuple(found)

    # --- lists ---

    def _passes(self) -> Listing:
        entries: list[Entry] = []
        idle: list[Step] = []

        def settle() -> None:
            if idle:
                names = ", ".join(dict.fromkeys(step.title for step in idle))
                seconds = _time(sum(step.seconds for step in idle))
                title = f"{len(idle)} passes changed nothing" if len(idle) > 1 else f"{names} changed nothing"
                details = (Detail("", (Line(names, is_code=True),)),)
                entries.append(Entry(title, seconds, details if len(idle) > 1 else (), is_dim=True))
                idle.clear()

        for step in self.history.steps:
            if step.changed:
                settle()
                entries.append(self._pass(step))
            else:
                idle.append(step)
        settle()
        return Listing("Passes", tuple(entries))

    def _pass(self, step: Step) -> Entry:
        note = f"{step.operations_before} → {step.operations_after} · {_time(step.seconds)}"
        details = [Detail("Pass", (Line(step.text, is_code=True),))]
        touched: list[int] = [*step.removed, *step.added]
        by_rule: dict[str, list[Rewrite]] = {}
        for rewrite in step.rewrites:
            by_rule.setdefault(rewrite.rule, []).append(rewrite)
            touched += [*rewrite.replaced, *rewrite.created]
        for rule, rewrites in by_rule.items():
            lines = [Line(f"{self._change(each)}{self._at(each)}", self._first(each)) for each in rewrites]
            details.append(Detail(f"{rule} ({len(rewrites)})", _shortened(lines)))
        for word, numbers in (("Removed", step.removed), ("Added", step.added)):
            if numbers:
                lines = [Line(_named(self.history.operations[number])) for number in numbers]
                details.append(Detail(f"{word} ({len(numbers)})", _shortened(lines)))
        return Entry(step.title, note, tuple(details), self._spots(touched))

    def _at(self, rewrite: Rewrite) -> str:
        numbers = rewrite.replaced or rewrite.created
        return f" at {self.history.operations[numbers[0]].location.where}" if numbers else ""

    def _first(self, rewrite: Rewrite) -> Spot | None:
        spots = self._spots([*rewrite.created, *rewrite.replaced])
        after = [spot for spot in spots if spot[0] == 1]
        return next(iter((*after, *spots)), None)

    def _remark_listings(self) -> Iterable[Listing]:
        groups: dict[str, list[Remark]] = {}
        for remark in self.remarks.all:
            if remark.kind in _TOLD:
                groups.setdefault(remark.kind, []).append(remark)
        entries = []
        for kind in sorted(groups, key=_TOLD.index):
            lines = [Line(f"{each.rule}: {each.message}", self._place(each)) for each in groups[kind]]
            spots = tuple(dict.fromkeys(line.spot for line in lines if line.spot is not None))
            look = self.order[KEPT] if kind == "kept" else None
            entries.append(Entry(kind, str(len(lines)), (Detail("", _shortened(lines)),), spots, look))
        if entries:
            yield Listing("Remarks", tuple(entries))

    def _place(self, remark: Remark) -> Spot | None:
        for side in (1, 0):
            for number, item in self.places[side].get(remark.location, ()):
                if remark.operation in (self.history.operations[number].name, ""):
                    return side, item
        return None

    def _by_location(self, side: _Side) -> dict[Location, list[tuple[int, int]]]:
        found: dict[Location, list[tuple[int, int]]] = {}
        for number, item in side.numbers.items():
            found.setdefault(self.history.operations[number].location, []).append((number, item))
        return found


class _RemarkIndex:
    """Remarks by the places that they are about."""

    def __init__(self, remarks: Sequence[Remark]) -> None:
        self.all = tuple(remarks)
        self._by_place: dict[Location, list[Remark]] = {}
        for remark in remarks:
            if remark.kind != "applied":
                self._by_place.setdefault(remark.location, []).append(remark)
        self._kept = {(remark.operation, remark.location) for remark in remarks if remark.kind == "kept"}

    def about(self, name: str, location: Location) -> list[Remark]:
        """Return the remarks about an operation."""
        places = dict.fromkeys((location, *location.parts))
        return [each for place in places for each in self._by_place.get(place, ()) if each.operation in (name, "")]

    def is_kept(self, op: OpSummary) -> bool:
        """Return whether an operation of the result is one that no fusion takes."""
        return (op.name, op.location) in self._kept


def _rules(deeds: Iterable[Deed]) -> list[str]:
    """Return the rules that the remarks tell of, in order."""
    return [deed.rewrite.rule for deed in deeds if deed.rewrite is not None and deed.rewrite.is_told]


def _what(item: Item, texts: dict[Operation, str]) -> Iterable[Detail]:
    """Say what an operation is and where it comes from."""
    op = item.operation
    assert op is not None
    places: list[Line] = []
    for part in op.location.parts:
        module = f"{part.module_path or 'the root module'}{f' ({part.class_name})' if part.class_name else ''}"
        places.append(Line(module, is_code=True))
        if part.source:
            code = linecache.getline(part.file, part.line).strip()
            places.append(Line(part.source))
            if code:
                places.append(Line(code, is_code=True))
    yield Detail("Where", tuple(dict.fromkeys(places)))
    if op.results:
        yield Detail(
            "Result" if len(op.results) == 1 else "Results", tuple(Line(str(r.type), is_code=True) for r in op.results)
        )
    operands = [Line(text, is_code=True) for text in _operands(op)]
    if operands:
        yield Detail("Operands", tuple(operands))
    text = texts.get(op)
    if text is not None:
        yield Detail("IR", tuple(Line(line, is_code=True) for line in text.splitlines()))


def _operands(op: Operation) -> Iterable[str]:
    names = [value.name for value in op.body.inputs] if op.body is not None else []
    if op.body is None:
        for number, param in enumerate(op.opdef.operand_params):
            size = 1 if op.segments is None else op.segments[number]
            names += [param.name if size == 1 else f"{param.name}[{i}]" for i in range(size)]
    for number, value in enumerate(op.operands):
        if value is not None:
            name = names[number] if number < len(names) else f"operand {number}"
            yield f"{name}: {value.type}{_origin(value)}"


def _origin(value: Value) -> str:
    if value.is_weight:
        return f", weight {value.name}"
    return f", input {value.name}" if value.is_input and value.name else ""


def _named(op: OpSummary) -> str:
    return f"{op.name} at {op.location.where}"


def _short(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def _shortened(lines: list[Line]) -> tuple[Line, ...]:
    if len(lines) <= _MOST_LINES:
        return tuple(lines)
    return (*lines[:_MOST_LINES], Line(f"and {len(lines) - _MOST_LINES} more"))


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
