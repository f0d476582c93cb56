"""An nn.MultiheadAttention that nothing uses was removed in eval mode: after `train()` the original draws numbers for it.

Removal of dead code, by every pass. Found by `training mode` on instances of DecomposeMultiheadAttentionPattern after 391
programs; fixed in passes/rewrite/effects.py.
"""

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("eliminate-dead-code")
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[9, 3] requires_grad
  parameter %o : f32[3, 3] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[3, 3]) {
    %attention, %weights = nn.multihead_attention(%x, %x, %x, %w, None, %o, None, None, None, None, None, None, None, None) {num_heads=1, embed_dim=3, dropout=0.5, need_weights=False} : f32[3, 3], opaque
    %relu = aten.relu(%x) : f32[3, 3]
    return %relu
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
