"""A suite from Python: three methods on scanned digits, two seeds each, at the scale of tests."""

import kdbench

suite = {
    "name": "first",
    "tasks": ["vision/digits-fewlabel@smoke"],
    "methods": ["teacher", "no_kd", "kd"],
    "seeds": 2,
    "tracking": False,
}

if __name__ == "__main__":
    result = kdbench.run(suite)
    for outcome in result.outcomes:
        print(outcome.job.label, outcome.job.seed, outcome.status, outcome.headline)
