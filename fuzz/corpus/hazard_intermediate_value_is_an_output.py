"""The convolution's result is an output, too: it is not free to disappear in a fused region."""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fuse.conv import ConvBNActPattern

SUBJECT = (ConvBNActPattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[3, 3, 1, 1] requires_grad
  parameter %gamma : f32[3] requires_grad
  parameter %beta : f32[3] requires_grad
  buffer %mean : f32[3]
  buffer %var : f32[3]
  out_spec (*, *)
  argument "x" = input 0
  result = output 0
  result = output 1
  graph(%x : f32[2, 3, 4, 4]) {
    %conv = aten.conv2d(%x, %w, None) : f32[2, 3, 4, 4]
    %bn = aten.batch_norm(%conv, %gamma, %beta, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[2, 3, 4, 4]
    %relu = aten.relu(%bn) : f32[2, 3, 4, 4]
    return %conv, %relu
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
