"""`ravel` makes a contiguous copy of an expanded tensor; a reshape of it is a view, of memory that the caller may write to.

SpellReshape. Found by `strides` or `values` after some 1,000 programs for the rule; fixed in 53e6c28.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.reshape import SpellReshape

SUBJECT = (SpellReshape,)
PROPERTIES = Properties(exact=True)
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[1, 1]) {
    %expand = aten.expand(%x) {size=[1, 2]} : f32[1, 2]
    %ravel = aten.ravel(%expand) : f32[2]
    return %ravel
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
