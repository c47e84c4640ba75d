"""Means over seeds of two metrics, of the results that come with the documentation."""

import kdbench

frame = kdbench.results(suite="annealed")
frame = frame[frame["status"] == "ok"]
means = frame.groupby("label")[["metrics.top1", "metrics.ece"]].mean()
print(means.round(4).reset_index().to_string(index=False))
