# SPDX-License-Identifier: MIT
"""Placements: types, mesh, tracer, rules, propagation, verification, simulation, emission."""

from .boundary import spmd
from .draft import build
from .error import (
    AnnotationError,
    BudgetError,
    MeshError,
    PlacementError,
    ShardingError,
    TraceError,
    VerificationError,
)
from .explain import explain
from .layout import Layout
from .mesh import Mesh, parse_mesh
from .op import register_rule
from .place import place
from .plan import CacheShape, Plan, RankPlan
from .region import local
from .rule import rule
from .scan import scan
from .spec import Placed, Spec, parse_spec
from .storage import Member, Pack, nest
from .trace import trace
from .tree import declare, leaves, map_leaves, module

__all__ = [
    "AnnotationError",
    "BudgetError",
    "CacheShape",
    "Layout",
    "Member",
    "Mesh",
    "MeshError",
    "Pack",
    "Placed",
    "PlacementError",
    "Plan",
    "RankPlan",
    "ShardingError",
    "Spec",
    "TraceError",
    "VerificationError",
    "build",
    "declare",
    "explain",
    "leaves",
    "local",
    "map_leaves",
    "module",
    "nest",
    "parse_mesh",
    "parse_spec",
    "place",
    "register_rule",
    "rule",
    "scan",
    "spmd",
    "trace",
]
