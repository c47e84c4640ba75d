"""A solver that does nothing."""

from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "idle"
    sampling_strategy = "run_once"
    parameters = {"variant": [0]}

    def set_objective(self, part):
        self.part = part

    def run(self, _):
        pass

    def get_result(self):
        return {"score": 0.5}
