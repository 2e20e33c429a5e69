"""A recipe says all that a run depends on; this package reads it and nothing else."""

from lrd_deploy.recipe.load import Recipe, builtin_recipes, load_recipe, parse_recipe
from lrd_deploy.recipe.policies import EnergyRank, LatencyRank, PaperRank, Policy, UniformRank

__all__ = [
    "EnergyRank",
    "LatencyRank",
    "PaperRank",
    "Policy",
    "Recipe",
    "UniformRank",
    "builtin_recipes",
    "load_recipe",
    "parse_recipe",
]
