"""`aten.lift` returns its operand, which its schema does not say: a copy of its result was taken for one too many.

NoCopy. Found by `sharing`, asking each operator of PyTorch whether its result shares memory with its operand; fixed in
ir/memory/aliasing.py.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.identity import NoCopy

SUBJECT = (NoCopy,)
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3]) {
    %same = aten.lift(%x) : f32[2, 3]
    %copy = aten.clone(%same) {memory_format=None} : f32[2, 3]
    return %copy
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
