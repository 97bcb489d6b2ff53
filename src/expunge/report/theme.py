"""The page's colours, light and dark, and the stand-ins by which a chart names them.

Ink is before, blue is after unlearning, orange is after an attack (and what is only hidden); violet counts amounts on
maps. Matplotlib knows hex colours only, so charts are drawn in stand-ins (#fe0001, ...) that become `var(--name)`.
"""

from __future__ import annotations

LIGHT = {
    "page": "#fbfaf8",
    "surface": "#ffffff",
    "ink": "#1c2126",
    "muted": "#5a636b",
    "line": "#d9dcdd",
    "grid": "#ebecec",
    "before": "#3d464e",
    "after": "#0a62a6",
    "attack": "#b34a00",
    "attack2": "#ce6a24",
    "attack3": "#dd8d52",
    "chance": "#7b848b",
    "mark": "#ffe9d6",
}
DARK = {
    "page": "#13171a",
    "surface": "#1a1f23",
    "ink": "#e8ebed",
    "muted": "#a5afb6",
    "line": "#39424a",
    "grid": "#283036",
    "before": "#ccd4da",
    "after": "#69b3ee",
    "attack": "#f79b5d",
    "attack2": "#c9733a",
    "attack3": "#985528",
    "chance": "#86919a",
    "mark": "#4a2e19",
}
HEAT_LIGHT = ("#f6f4f8", "#e7e1ef", "#d6cce4", "#c2b4d8", "#ab99ca", "#927cb9", "#785fa6", "#5d428e", "#422870")
HEAT_DARK = ("#20232b", "#2c2a3b", "#3b344f", "#4d4167", "#625182", "#7a659e", "#957dba", "#b39ad6", "#d6c0f2")
LEVELS = len(HEAT_LIGHT)

NAMES = (*LIGHT, *(f"heat{i}" for i in range(LEVELS)))
STAND_IN = {name: f"#fe{i:04x}" for i, name in enumerate(NAMES, start=1)}
HEAT = tuple(STAND_IN[f"heat{i}"] for i in range(LEVELS))


def variables(dark: bool) -> str:
    """CSS declarations of one scheme, one line."""
    colours, heat = (DARK, HEAT_DARK) if dark else (LIGHT, HEAT_LIGHT)
    pairs = [*colours.items(), *((f"heat{i}", value) for i, value in enumerate(heat))]
    return " ".join(f"--{name}: {value};" for name, value in pairs)
