"""neg(neg(x)) where x is an input and the result an output: what comes out must not be the input itself."""

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("canonicalize")
PROPERTIES = Properties(exact=True, idempotent=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4]) {
    %a = aten.neg(%x) : f32[4]
    %b = aten.neg(%a) : f32[4]
    return %b
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
