"""A copy of running statistics was removed, and training wrote to the statistics themselves.

NoCopy. Found by `training mode` in a campaign of inflated programs after 153; the emitted module changed a buffer in
`train()` that the model leaves as it is. FoldConstants and merging of equal copies did the same.
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
  buffer %mean : f32[3]
  buffer %var : f32[3]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4, 3]) {
    %clone = aten.clone(%var) : f32[3]
    %bn = aten.batch_norm(%x, None, None, %mean, %clone) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[4, 3]
    return %bn
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
