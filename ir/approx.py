"""placeholder until the approximations are written"""
from plait.ir.expr import Expr
from plait.ir import expr as e
def tanh(x: Expr) -> Expr: return e.apply("tanh", x)
def erf(x: Expr) -> Expr: return e.apply("erf", x)
def sigmoid(x: Expr) -> Expr: return e.apply("sigmoid", x)
TABLE = {}
