"""The plots of a page as Vega-Lite specifications; the browser fills in sizes and colors of its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ttopt.evaluate.table import NUMBERS, Row

COSTS = ("generated_seconds", "reasoner_forwards", "wall_seconds", "vlm_calls")
Spec = dict[str, Any]


def score_against_cost(table: Sequence[Row], score: str) -> dict[str, Spec]:
    """One plot for every unit of cost: the methods' scores with their intervals."""
    made = {}
    for cost in COSTS:
        values = [
            {"method": row.method, "cost": getattr(row, cost), "score": row.score.mean, "low": row.score.low,
             "high": row.score.high}
            for row in table
            if getattr(row, cost) is not None and math.isfinite(row.score.mean)
        ]  # fmt: skip
        if not any(value["cost"] for value in values):
            continue
        x = {"field": "cost", "type": "quantitative", "title": f"{NUMBERS[cost]} a sample", "scale": {"type": "symlog"}}
        y = {"field": "score", "type": "quantitative", "title": score, "scale": {"zero": False}}
        color = {"field": "method", "type": "nominal", "legend": None}
        tooltip = [{"field": f, "type": t, "format": ".3~f" if t == "quantitative" else ""}
                   for f, t in (("method", "nominal"), ("score", "quantitative"), ("low", "quantitative"),
                                ("high", "quantitative"), ("cost", "quantitative"))]  # fmt: skip
        made[NUMBERS[cost]] = {
            "data": {"values": values},
            "width": "container",
            "height": 300,
            "encoding": {"x": x, "color": color, "tooltip": tooltip},
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.45},
                 "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}},
                {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1}, "encoding": {"y": y}},
                {"mark": {"type": "text", "align": "left", "dx": 9, "dy": -7, "fontSize": 12},
                 "encoding": {"y": y, "text": {"field": "method"}}},
            ],
        }  # fmt: skip
    return made


def loss_curve(tau: float) -> Spec:
    """Loss over the steps with the line of tau; the page puts the rows of a sample's curves.csv in as data."""
    y = {"field": "loss", "type": "quantitative", "title": "loss"}
    step = {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickMinStep": 1}}
    once: Spec = {"data": {"values": [{}]}}
    line = {"y": {"datum": tau}, "color": {"value": "#d1495b"}}
    text = {"type": "text", "align": "right", "x": "width", "y": 6, "color": "#d1495b", "text": f"- - tau = {tau:g}"}
    layers: list[Spec] = [
        {"mark": {"type": "line", "point": True}, "encoding": {"x": step, "y": y}},
        {"mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.5}, "encoding": line, **once},
        {"mark": text, **once},
    ]
    return {"width": "container", "height": 190, "layer": layers}


def question_curves() -> Spec:
    """P("Yes") of every question over the steps."""
    return {
        "width": "container",
        "height": 190,
        "transform": [{"filter": "isValid(datum.p)"}],
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickMinStep": 1}},
            "y": {"field": "p", "type": "quantitative", "title": 'P("Yes")', "scale": {"domain": [0, 1]}},
            "color": {"field": "question", "type": "nominal", "sort": None, "title": None,
                      "legend": {"orient": "bottom", "columns": 4}},
            "tooltip": [{"field": "question"}, {"field": "step"}, {"field": "p", "format": ".3f"},
                        {"field": "text", "title": "asked"}],
        },
    }  # fmt: skip
