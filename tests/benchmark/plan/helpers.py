from benchmark.plan.plan import Plan
from benchmark.plan.stage import Stage

SETTINGS = {"model": "m", "attack": {"name": "x"}, "defense": {"name": "x"}, "metrics": []}


def stage(key: str, *needs: str, kind: str = "attack") -> Stage:
    return Stage(kind, key, SETTINGS, needs)


def plan(*stages: Stage, done: tuple[str, ...] = ()) -> Plan:
    return Plan((), {each.key: each for each in stages}, frozenset(done))
