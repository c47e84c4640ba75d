"""Messages: states there and back, and codecs of a given size."""

import pytest
import torch

from kdbench.training.messages import codec, codec_parameters, codecs_of_size, read_positions, width_of, write_state


def test_states_are_written_in_the_form_of_the_reader():
    positions = torch.randn(2, 16, 6)
    assert write_state(positions, torch.zeros(2, 3, 8, 8)).shape == (2, 6, 8, 8)
    tokens = write_state(positions, torch.zeros(2, 17, 3))
    torch.testing.assert_close(tokens[:, 1:], positions)
    torch.testing.assert_close(tokens[:, 0], positions.mean(1))
    assert write_state(positions, torch.zeros(2, 9, 3)).shape == (2, 9, 6)


def test_there_and_back_on_the_same_grid():
    state = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(write_state(read_positions(state, 4), state), state)
    assert width_of(state) == width_of(torch.zeros(2, 17, 6)) == 6
    torch.testing.assert_close(read_positions(state, 1)[:, 0], state.mean((2, 3)))


def test_codecs_have_the_size_that_was_asked_for():
    shapes = {"one": (6, 32), "other": (32, 24)}
    wanted = codec_parameters(shapes.values(), 50)
    made = codecs_of_size(shapes, wanted)
    assert sum(parameter.numel() for parameter in made.parameters()) == wanted
    assert made["one"](torch.zeros(2, 9, 6)).shape == (2, 9, 32)
    near = codecs_of_size(shapes, wanted + 30)
    assert sum(parameter.numel() for parameter in near.parameters()) == pytest.approx(wanted + 30, abs=48)
    assert codec(3, 5, 2)(torch.zeros(4, 3)).shape == (4, 2)
