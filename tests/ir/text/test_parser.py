from __future__ import annotations

import math

import pytest
import sympy
import torch
from torch.utils._sympy import functions as size_functions
from torch.utils._sympy.numbers import int_oo

from ir.attributes import Attribute, UnknownObject, attributes_equal
from ir.builder import Builder
from ir.compare import programs_equal
from ir.core import Graph, Operation
from ir.errors import ParseError
from ir.opdef import get_opdef
from ir.program import Program
from ir.text.literals import format_attribute, parse_attribute, parse_type
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import CPU, OpaqueType, ScalarType, TensorType, Type, make_symbol
from ir.verify import verify
from tests.ir.programs import conv_net, f32, program_of, rich_program

S, T = make_symbol("s0"), make_symbol("seq")
F = size_functions

EXPRESSIONS = [
    S,
    2 * S,
    S + T - 3,
    -S,
    S**2,
    S * T + 1,
    S / 2,
    (S + 1) ** 3,
    F.FloorDiv(S, 2),
    F.FloorDiv(S + T, 3) * 2 - 1,
    F.FloorDiv(F.FloorDiv(S, 2) + 1, T),
    -F.FloorDiv(S, 2),
    F.FloorDiv(S, 2) ** 2,
    F.Mod(S, 3),
    F.PythonMod(S - 5, 3),
    F.Max(1, S),
    F.Min(S, T, 4),
    F.CleanDiv(S, 2),
    F.CeilDiv(S, 2),
    F.ModularIndexing(S, 2, 3),
    F.Identity(S),
    F.IntTrueDiv(S, 2),
    F.FloatTrueDiv(F.ToFloat(S), 2.0),
    F.TruncToInt(F.IntTrueDiv(S, 3)),
    F.PowByNatural(S, T),
    F.Where(S > 2, S, T),
    F.OpaqueUnaryFn_sqrt(S),
    sympy.sqrt(S),
    sympy.Abs(S - T),
    0.1 * S,
    S / 3.0,
    sympy.exp(S),
    F.Max(S, int_oo),
    S - int_oo,
]

LEAVES = [
    None,
    True,
    False,
    0,
    -1,
    2**70,
    0.0,
    -0.0,
    1.0,
    1e-5,
    -1e300,
    5e-324,
    0.1,
    math.inf,
    -math.inf,
    math.nan,
    complex(1, -0.0),
    complex(math.inf, math.nan),
    "",
    "plain",
    'quo"te \\ back',
    "new\nline\ttab \0 nul",
    "ünïcode ☃ \U0001f600 \ud800",
    "# no comment } ] ) %x",
    torch.float32,
    torch.bfloat16,
    torch.float8_e4m3fnuz,
    torch.strided,
    torch.sparse_coo,
    torch.channels_last,
    torch.preserve_format,
    torch.device("cpu"),
    torch.device("cuda:1"),
    torch.device("meta"),
    (),
    ((),),
    (1, (2.0, ("a", None)), ()),
    (S, 2 * S, -1),
    sympy.Float(0.1),
    sympy.Rational(1, 3),
    sympy.oo,
    int_oo,
    -int_oo,
]

TYPES: list[tuple[str, Type]] = [
    ("f32[2, 3]", f32(2, 3)),
    ("f32[]", f32()),
    ("i64[0]", TensorType((0,), torch.int64)),
    ("f32[batch, 3, 224, 224]", f32(make_symbol("batch"), 3, 224, 224)),
    ("bf16[2*s0, seq + 1]", TensorType((2 * S, T + 1), torch.bfloat16)),
    ("f32[(s0//2)]", f32(F.FloorDiv(S, 2))),
    ("f32[Max(1, s0)]", f32(F.Max(1, S))),
    ("bool[1]", TensorType((1,), torch.bool)),
    ("f32[?, ?, 1, 1]", f32(None, None, 1, 1)),
    ("f32[*]", TensorType(None, torch.float32)),
    ("?[2]", TensorType((2,), None)),
    ("?[*]", TensorType(None, None, CPU)),
    ("?", TensorType(None, None, None)),
    ("f32[2]@meta", TensorType((2,), torch.float32, torch.device("meta"))),
    ("f16[2]@cuda:1", TensorType((2,), torch.float16, torch.device("cuda:1"))),
    ("f32[2]@?", TensorType((2,), torch.float32, None)),
    ("float8_e4m3fnuz[2]", TensorType((2,), torch.float8_e4m3fnuz)),
    ("int", ScalarType("int")),
    ("int(5)", ScalarType("int", 5)),
    ("int(2*s0)", ScalarType("int", 2 * S)),
    ("float", ScalarType("float")),
    ("bool", ScalarType("bool")),
    ("opaque", OpaqueType()),
]


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
def test_expressions_round_trip(expr: sympy.Expr) -> None:
    text = format_attribute(expr)
    assert parse_attribute(text) == expr
    assert type(parse_attribute(text)) is type(expr)


@pytest.mark.parametrize("value", LEAVES, ids=repr)
def test_attributes_round_trip(value: Attribute) -> None:
    assert attributes_equal(parse_attribute(format_attribute(value)), value)


def test_floats_keep_their_sign_and_kind() -> None:
    assert math.copysign(1, parse_attribute("-0.0")) == -1
    assert type(parse_attribute("1")) is int
    assert type(parse_attribute("1.0")) is float
    assert parse_attribute("True") is True


def test_arithmetic_binds_as_in_python() -> None:
    cases = {
        "-s0**2": -(S**2),
        "2**-1*s0": S / 2,
        "2**3**2": 512,
        "1 - 2 - 3": -4,
        "s0 - (seq - 1)": S - T + 1,
        "7//2": 3,
        "s0//2//2": F.FloorDiv(S, 4),
        "6/2": 3,
        "(1 + 2)*3": 9,
    }
    for text, expected in cases.items():
        assert parse_attribute(text) == expected, text


def test_other_objects_keep_the_name_of_their_class() -> None:
    text = format_attribute({1})
    assert text == 'opaque("builtins.set")'
    assert parse_attribute(text) == UnknownObject("builtins.set")
    assert format_attribute(parse_attribute(text)) == text


@pytest.mark.parametrize(("text", "type_"), TYPES, ids=[text for text, _ in TYPES])
def test_types_round_trip(text: str, type_: Type) -> None:
    assert str(type_) == text
    assert parse_type(text) == type_


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f32",
        "f32[2",
        "f32[2,, 3]",
        "f33[2]",
        "f32[2.5]",
        "f32[-]",
        "f32[2] x",
        "f32[s0 > 2]",
        "f32[2]@nowhere",
        "int(",
        "int(0.5)",
        "tensor",
        "*",
        "f32[__import__('os')]",
    ],
)
def test_ill_formed_types_are_refused(text: str) -> None:
    with pytest.raises(ParseError, match="line 1, column"):
        parse_type(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2",
        "[1 2]",
        '"open',
        '"bad \\q escape"',
        "print(1)",
        "open.path",
        "s0.x",
        "torch.nn",
        "torch.load",
        "Mod(1)",
        "Max(1, 2",
        "s0 +",
        "1 < 2",
        "s0 >",
        "1/0",
        "s0//0",
        "device(1.5)",
        'device("nowhere")',
        "complex(1)(2)",
        "%x",
        "1 2",
        "~1",
        "lambda: 0",
    ],
)
def test_ill_formed_attributes_are_refused(text: str) -> None:
    with pytest.raises(ParseError, match="line 1, column"):
        parse_attribute(text)


def test_a_name_alone_is_a_symbol_whatever_it_is_called() -> None:
    assert parse_attribute("__import__") == make_symbol("__import__")


def round_trip(program: Program) -> Program:
    text = print_program(program)
    parsed = parse_program(text)
    assert programs_equal(parsed, program) is None
    assert print_program(parsed) == text
    return parsed


def test_programs_round_trip() -> None:
    verify(round_trip(rich_program()))
    verify(round_trip(conv_net()))


def test_a_program_without_anything_round_trips() -> None:
    round_trip(program_of(Graph(), 'odd "name"\n'))


def test_nasty_attributes_round_trip_in_programs() -> None:
    graph = Graph([("x", f32(2))])
    body = Graph([("input", f32(2))])
    body.set_outputs([Builder(body).relu(body.inputs[0])])
    attributes = {f"a{i}": value for i, value in enumerate([*LEAVES, *EXPRESSIONS])}
    graph.append(Operation(get_opdef("fused.nasty"), [graph.inputs[0]], attributes, [f32(2)], body=body, names=["%"]))
    parsed = round_trip(program_of(graph))
    assert parsed.graph.first is not None
    assert list(parsed.graph.first.attributes) == list(attributes)


def test_names_that_need_quotes_round_trip() -> None:
    graph = Graph([("a b", f32(2)), ('"', f32(2)), ("%x", f32(2)), ("ü", f32(2)), ("return", f32(2)), ("1", f32(2))])
    builder = Builder(graph)
    graph.set_outputs([builder.relu(value) for value in graph.inputs])
    parsed = round_trip(program_of(graph))
    assert [value.name for value in parsed.graph.inputs] == ["a b", '"', "%x", "ü", "return", "1"]


def test_absent_operands_and_lists_round_trip() -> None:
    graph = Graph([("x", f32(2, 3)), ("i", TensorType((2,), torch.int64))])
    x, i = graph.inputs
    builder = Builder(graph)
    y = builder.call("aten.index.Tensor", x, [None, i])
    z = builder.cat([y, y], 0)
    empty = Graph([("x", f32(0, 3))])
    assert Builder(empty).call("aten.unbind.int", empty.inputs[0]) == ()
    graph.set_outputs([z, z])
    parsed = round_trip(program_of(graph))
    assert parsed.graph.first is not None
    assert parsed.graph.first.segments == (1, 2)
    round_trip(program_of(empty))


def test_result_types_may_be_left_out() -> None:
    program = parse_program(
        """
        program "p" {  # comments are skipped
          symbol n in [0, inf]
          graph(%x : f32[n, 4]) {
            %a, %b = aten.split.Tensor(%x) {split_size=3, dim=1}
            %y = fused.twice(%a) {kind="twice"}
              body(%input : f32[n, 3]) {
                %z = aten.neg(%input)
                return %z
              }
            return %y, %b
          }
        }
        """
    )
    verify(program)
    assert [str(value.type) for value in program.graph.outputs if value is not None] == ["f32[n, 3]", "f32[n, 1]"]


def test_constraints_round_trip() -> None:
    program = rich_program()
    n = next(iter(program.symbols))
    program.constraints = (
        sympy.Eq(size_functions.Mod(n, 2), 0),
        n * n > 10,
        sympy.Ne(size_functions.FloorDiv(n, 3), 2),
    )
    text = print_program(program)
    assert text.count("  require ") == 3
    parsed = parse_program(text)
    assert parsed.constraints == program.constraints
    assert programs_equal(program, parsed) is None
    parsed.constraints = parsed.constraints[:2]
    assert "constraints" in str(programs_equal(program, parsed))
    with pytest.raises(ParseError, match="expected a relation between symbols"):
        parse_program(text.replace("require Eq(Mod", "require (Mod", 1).replace(", 2), 0)", ", 2))", 1))


def test_weights_have_no_data() -> None:
    assert all(weight.data is None for weight in conv_net().weights.values())


PLAIN = """program "p" {
  graph(%x : f32[2, 3]) {
    %y = aten.relu(%x) : f32[2, 3]
    return %y
  }
}"""


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "message"),
    [
        ("aten.relu", "aten.rely", 3, 10, "there is no operator named 'aten.rely'"),
        ("(%x) :", "(%z) :", 3, 20, "no value named 'z' is defined above"),
        ("(%x) :", "() :", 3, 19, "aten.relu has 1 tensor operands (self), 0 given"),
        ("%y =", "%x =", 3, 5, "a value named 'x' is defined already"),
        ("%y =", "%y, %z =", 3, 14, "2 results are named, but 1 types given"),
        ("%y = ", "%y ", 3, 8, "expected '=', found 'aten.relu'"),
        ("f32[2, 3]\n", "f32[2, ]\n", 3, 33, "expected a number or an expression, found ']'"),
        ("(%x) :", "(%x) {a=1} :", 3, 25, "aten.relu has no attribute 'a'"),
        ("return %y", "return %z", 4, 12, "no value named 'z' is defined above"),
        ("return %y", "", 5, 3, "expected an operation or `return`, found '}'"),
        ("program", "programme", 1, 1, "expected 'program', found 'programme'"),
        ("  graph", "  grap", 2, 3, "'grap' is not a statement of a program"),
        ("f32[2, 3]\n", 'f32[2, 3] loc("a", "b", "c", 1, 2)\n', 3, 58, "a location has a module path"),
        ('"p"', '"p', 1, 9, "unexpected character '\"'"),
        ("%x :", "$x :", 2, 9, "unexpected character '$'"),
    ],
)
def test_errors_point_at_the_place(old: str, new: str, line: int, column: int, message: str) -> None:
    text = PLAIN.replace(old, new, 1)
    assert text != PLAIN
    with pytest.raises(ParseError) as info:
        parse_program(text)
    error = info.value
    assert error.message.startswith(f"line {line}, column {column}: {message}")
    assert (error.line, error.column) == (line, column)
    shown, caret = error.message.splitlines()[1:3]
    assert shown == "    " + text.splitlines()[line - 1]
    assert caret == " " * (4 + column - 1) + "^"


@pytest.mark.parametrize(
    "statement",
    [
        "symbol inf in [0, 1]",
        "symbol n in [0]",
        "symbol a.b in [0, 1]",
        "parameter %w : int",
        "parameter %w : f32[2]\n parameter %w : f32[2]",
        'in_spec unserializable "Pair"',
        'argument "x" = %x',
        'mutation "b" = input 0',
        "modules both",
        'after test modules eval "x"',
        'after train eval "x"',
        "mode_locked",
        "refuses",
        'refuses "no_grad" answers [1]',
        'refuses "no_grad" place',
        'refuses "bogus"',
        'refuses "no_grad" refuses "no_grad"',
        "in_spec ((), {}) in_spec ((), {})",
        "out_spec * out_spec *",
        'parameters "x" parameters "x"',
        "keeps_order keeps_order",
        'mode_locked "a" mode_locked "b"',
        'opaque "f" opaque "f"',
        'same_module "a" = "b" same_module "a" = "c"',
        'modules eval "a" modules train "a"',
        'after eval modules eval "a" after eval modules train "a"',
        'argument "x" = {1: 2, 1.0: 3}',
        'parameters *"x", *"y"',
        'parameters *"x", "y", *"z"',
        'parameters /, "x"',
        'parameters "x", /, /',
        'parameters "x", *, /',
        'parameters **"k", "x"',
        'parameters "x" = {[1]: 2, list(1): 3}',
    ],
)
def test_ill_formed_statements_are_refused(statement: str) -> None:
    with pytest.raises(ParseError, match="line "):
        parse_program(PLAIN.replace("  graph", f"  {statement}\n  graph"))


def test_inference_errors_point_at_the_operation() -> None:
    text = PLAIN.replace("aten.relu(%x) : f32[2, 3]", "aten.mm(%x, %x)")
    with pytest.raises(ParseError, match=r"line 3, column 10: aten\.mm"):
        parse_program(text)
