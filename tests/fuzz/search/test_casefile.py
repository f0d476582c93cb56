"""Cases as text: what a file says, what is written reads back, and what is ill-formed is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fuzz.programs.case import Case
from fuzz.programs.properties import Properties
from fuzz.rules.names import RULES, find_rule, name_of_rule
from fuzz.search.casefile import format_case, read_case
from ir.errors import ParseError
from passes.canonicalize import Canonicalize
from passes.canonicalize.identity import NoAlias, NoCopy
from passes.manager.manager import PassManager

PROGRAM = """program "case" {
  buffer %var : f32[2]
  constant %"a b" : i64[2]
  argument "x" = input 0
  argument "n" = input 1
  result = output 0
  graph(%x : f32[2, 2], %n : int) {
    %y = aten.clone(%x) : f32[2, 2]
    return %y
  }
}"""
HEADER = """# What was wrong:
# all of it.
#
# Found yesterday.
#
# rules: NoCopy, passes.canonicalize.identity:NoAlias
# properties: exact, not modes
# fires: no
# order: 3
# seed: 1
# %var in [0.5, 2.0]
# %"a b" = i64[2] [1, -9223372036854775808]
# %x = f32[2, 2] [-0.0, nan, inf, -inf] strides [1, 2]
# %n = 7
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "case.gw"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    file = read_case(written(tmp_path, f"{HEADER}\n{PROGRAM}\n==== expected\n{PROGRAM}\n"))
    assert file.about == "What was wrong:\nall of it.\n\nFound yesterday."
    assert file.subject == (NoCopy, NoAlias)
    assert file.properties == Properties(exact=True, modes=False)
    assert file.fires is False
    assert file.order == 3
    assert file.case.program == file.expected == PROGRAM
    x, n = file.case.inputs
    assert n == 7
    assert x.stride() == (1, 2)
    assert str(x.tolist()) == "[[-0.0, nan], [inf, -inf]]"
    assert file.case.weights["a b"].tolist() == [1, -(2**63)]
    seeded = Case.seeded(PROGRAM, seed=1, bounds={"var": (0.5, 2.0)}, values={"x": x, "n": 7, "a b": x})
    assert torch.equal(file.case.weights["var"], seeded.weights["var"])


def test_facts_have_defaults(tmp_path: Path) -> None:
    text = PROGRAM.replace("%n : int", "%n : f32[]")
    file = read_case(written(tmp_path, f"# Wrong.\n#\n# pipeline: canonicalize\n{text}"))
    assert file.subject == PassManager([Canonicalize()])
    assert (file.properties, file.fires, file.order, file.expected) == (Properties(), None, 0, None)
    assert not file.case.original
    assert not file.case.one_text


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t(),
        torch.tensor([True, False]),
        torch.tensor([1e-7, 6e4], dtype=torch.float16),
        torch.tensor([complex("inf-1j"), 1j]),
        torch.tensor([[-128]], dtype=torch.int8),
        1.5,
        True,
        -3,
    ],
    ids=repr,
)
def test_every_bit_of_a_case_reads_back(value: Any, tmp_path: Path) -> None:
    weights = {"var": torch.randn(2), "a b": torch.tensor([1, 2])}
    program = PROGRAM.replace("%x : f32[2, 2]", "%x : ?")
    case = Case(program, (value, 3), weights, original=PROGRAM, one_text=True)
    properties = Properties(strides=False, exact=True, canonical=True)
    text = format_case("wrong\n\nreally", "rules: NoCopy", case, properties, order=2)
    assert text is not None
    file = read_case(written(tmp_path, text))
    assert file.about == "wrong\n\nreally"
    assert (file.case.original, file.case.one_text, file.order) == (PROGRAM, True, 2)
    assert file.properties == properties
    again = file.case.inputs[0]
    assert type(again) is type(value)
    if isinstance(value, torch.Tensor):
        assert (again.dtype, again.shape, again.stride()) == (value.dtype, value.shape, value.stride())
    assert str(again) == str(value)
    assert all(torch.equal(file.case.weights[name], data) for name, data in weights.items())


def test_a_case_whose_names_are_not_its_own_has_no_text() -> None:
    program = PROGRAM.replace("%n : int", '%n "x" : int')
    weights = {"var": torch.randn(2), "a b": torch.tensor([1, 2])}
    assert format_case("wrong", "rules: NoCopy", Case(program, (torch.ones(2, 2), 3), weights), Properties()) is None
    assert format_case("wrong", "rules: NoCopy", Case(PROGRAM, (torch.ones(2, 2), 3)), Properties()) is None


def test_rules_have_names() -> None:
    class Inner(NoCopy):
        pass

    assert all(find_rule(name_of_rule(rule) or "") is rule for rule in RULES.values())
    assert name_of_rule(Inner) is None


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("# fires: no", "# fire: no", 8, "'fire: no' is not a fact; did you mean 'fires'? known: "),
        ("# fires: no", "# fires", 8, "'fires' is not a fact"),
        ("# fires: no", "# fires: perhaps", 8, "`fires`: 'perhaps' is neither yes nor no"),
        ("# fires: no", "# order: 1", 9, "'order' is said twice"),
        ("# fires: no", "# rules: NoCopy", 8, "'rules' is said twice"),
        ("# fires: no", "# one text: yes", 8, "`one text: yes` needs a program after a line `==== original`"),
        ("# order: 3", "# order: -3", 9, "`order`: -3 is not in [0, "),
        ("# seed: 1", "# seed: 99999999999999999999999", 10, "`seed`: 99999999999999999999999 is not in ["),
        ("exact, not modes", "exact, not exact", 7, "`properties`: 'exact' is said twice"),
        ("rules: NoCopy", "rules: ..relative:Rule", 6, "'..relative:Rule' does not name a module"),
        ("rules: NoCopy", "rules: :Rule", 6, "':Rule' does not name a module"),
        ("[0.5, 2.0]", "[2.0, 0.5]", 11, "no number is drawn from this range"),
        ("[0.5, 2.0]", "[nan, 2.0]", 11, "no number is drawn from this range"),
        ("[0.5, 2.0]", "[0.5, inf]", 11, "no number is drawn from this range"),
        ('%"a b" = i64[2] [1, -9223372036854775808]', '%"a b" in [1, 2]', 12, "only floating-point numbers are drawn"),
        ("%x = f32", "%x = f64", 13, "%x has type f32[2, 2], and its value has dtype torch.float64"),
        ("%x = f32[2, 2]", "%x = f32[2, 2]@meta", 13, "a tensor of a case is in the memory of the CPU, not on meta"),
        ("clone(%x) : f32[2, 2]", "clone(%x) : f32[2, 3]", 16, "result 0 of aten.clone has type f32[2, 3]"),
        (
            "==== expected",
            '==== original\nprogram "p" { argument "x" = input 2 graph() { return } }\n==== expected',
            28,
            "the ",
        ),
        ("# fires: no", "# pipeline: canonicalize", 8, "`pipeline`: rules and a pipeline are two subjects"),
        ("# order: 3", "# order: third", 9, "`order`: invalid literal"),
        ("rules: NoCopy", "rules: NoCopies", 6, "there is no rule 'NoCopies'"),
        ("identity:NoAlias", "identity:NoSuch", 6, "the rule 'passes.canonicalize.identity:NoSuch' cannot be imported"),
        ("identity:NoAlias", "identity:aliases", 6, "aliases"),
        (
            "rules: NoCopy,",
            "pipeline: canonicalise,",
            6,
            "no pass is named 'canonicalise'",
        ),
        ("exact, not modes", "exakt", 7, "`properties`: 'exakt' is not a property; did you mean 'exact'?"),
        ("%var in", "%variance in", 11, "the program has no input or weight 'variance'"),
        ("[0.5, 2.0]", "[0.5]", 11, "expected a range"),
        ("%n = 7", "%n : 7", 14, "expected '='"),
        ("%n = 7", "%n = 7 8", 14, "expected the end of the text"),
        ("%n = 7", "%n = f32[2] [1.0]", 14, "not a tensor: "),
        ("%n = 7", "%n = f32[s] [1.0]", 14, "not a tensor: "),
        ("%n = 7", '%n = f32[1] "a"', 14, "not a tensor: "),
        ("# %n = 7\n", "", 14, "no tensor can be drawn for %n of type int"),
        ("buffer %var : f32[2]", "buffer %var : f32[2]@cuda:0", 15, "%var is on cuda:0"),
        (HEADER, "", 1, "the file does not begin with a comment that says what was wrong"),
        (HEADER, "# rules: NoCopy\n", 1, "the file does not begin with a comment that says what was wrong"),
        (HEADER, "# Wrong.\n#\n# fires: no\n", 3, "no fact says what is applied"),
        (PROGRAM, "", 15, "the program is missing"),
        ("aten.clone", "aten.klone", 23, "there is no operator"),
        ("return %y", "return %z", 24, "no value named 'z' is defined above"),
        ("==== expected", "==== expect", 27, "no part of a case begins with '==== expect'"),
        ("==== expected", "==== original\n==== original", 28, "no part of a case begins with '==== original'"),
        ("==== expected", "==== expected\n\nprogramme", 29, "expected 'program'"),
    ],
)
def test_what_is_ill_formed_is_refused(old: str, new: str, line: int, message: str, tmp_path: Path) -> None:
    text = f"{HEADER}\n{PROGRAM}\n==== expected\n{PROGRAM}\n"
    assert old in text
    count = 2 if old == PROGRAM else 1
    path = written(tmp_path, text.replace(old, new, count))
    with pytest.raises(ParseError) as caught:
        read_case(path)
    assert caught.value.message.startswith(f"{path}, line {line}")
    assert message in caught.value.message
    assert caught.value.line == line


def test_one_text_demands_that_canonicalization_makes_one(tmp_path: Path) -> None:
    text = HEADER.replace("# fires: no", "# one text: yes")
    file = read_case(written(tmp_path, f"{text}\n{PROGRAM}\n==== original\n{PROGRAM}\n"))
    assert file.case.one_text
    assert file.properties.canonical
    text = text.replace("not modes", "not canonical")
    with pytest.raises(ParseError, match="contradicts `properties: not canonical`"):
        read_case(written(tmp_path, f"{text}\n{PROGRAM}\n==== original\n{PROGRAM}\n"))


def test_files_are_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "case.gw"
    path.write_text(f"{HEADER}\n{PROGRAM}", encoding="utf-8-sig")
    assert read_case(path).about.startswith("What was wrong")
    path.write_bytes(f"{HEADER}\n{PROGRAM}".replace("Found", "F\xf6und").encode("latin-1"))
    with pytest.raises(ParseError, match=r"case\.gw, line 4: the file is not UTF-8 text"):
        read_case(path)
