"""A data set without data."""

from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "empty"

    def get_data(self):
        return {"part": 0}
