"""benchopt's side of the comparison: an objective that measures nothing."""

from benchopt import BaseObjective


class Objective(BaseObjective):
    name = "nothing"
    sampling_strategy = "run_once"

    def set_data(self, part):
        self.part = part

    def get_objective(self):
        return {"part": self.part}

    def evaluate_result(self, score):
        return {"value": score}

    def get_one_result(self):
        return {"score": 0.5}
