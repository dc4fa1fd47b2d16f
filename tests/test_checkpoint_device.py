"""The state of a controller, saved where the model was and loaded where it is now."""

import pytest
import torch
from added_method import ADDED
from torch import Tensor, nn

from commit_tuning import CoMMITConfig, ModulePartition
from commit_tuning.config import Probe
from commit_tuning.control.base import LooksAtSteps
from commit_tuning.methods import make_controller


def controller_on(device, method):
    """A controller of two modules that has seen one step, and its tensors."""
    modules = {name: [nn.Parameter(torch.ones(2, device=device))] for name in ("language_model", "vision")}
    config = CoMMITConfig(method=method, probe=Probe(interval=None))
    controller = make_controller(config, ModulePartition(modules))
    if isinstance(controller, LooksAtSteps):
        controller.before_step()
        controller.after_step()
    controller.multipliers(1)
    return controller


def tensors_in(state):
    """All tensors in nested containers."""
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


@pytest.mark.parametrize("method", [ADDED, "feature-cd", "language-cd"])
def test_state_moves_to_the_device_of_parameters(method):
    state = controller_on("cpu", method).state_dict()
    assert {tensor.device.type for tensor in tensors_in(state)} == {"cpu"}
    controller = controller_on("meta", method)
    controller.load_state_dict(state)
    assert {tensor.device.type for tensor in tensors_in(controller.state_dict())} == {"meta"}


@pytest.mark.parametrize("method", [ADDED, "feature-cd"])
def test_state_on_the_same_device_keeps_values(method):
    state = controller_on("cpu", method).state_dict()
    marked = [tensor.fill_(index + 2) for index, tensor in enumerate(tensors_in(state))]
    controller = controller_on("cpu", method)
    controller.load_state_dict(state)
    loaded = tensors_in(controller.state_dict())
    assert len(loaded) == len(marked) > 0
    assert all(torch.equal(new, old) for new, old in zip(loaded, marked, strict=True))


def test_state_before_the_first_step_has_no_weights():
    controller = controller_on("cpu", "feature-cd")
    state = {**controller.state_dict(), "weights": None}
    controller.load_state_dict(state)
    assert controller.state_dict()["weights"] is None
