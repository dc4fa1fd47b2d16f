"""One measurement for all processes of a distributed run, so that every rank sets the same learning rates."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist

from commit_tuning.core.probe import Measurement


def across_ranks(measurement: Measurement, samples: int, device: torch.device) -> Measurement:
    """Drifts and loss averaged over all ranks, each weighing as many samples as it measured.

    Noise floors, displacements and H stay those of this rank. Every rank has to measure at the same step.

    Args:
        measurement: Of this rank.
        samples: That it was taken on.
        device: Where the process group can reduce a tensor, i.e. the model's.

    Returns:
        The measurement itself where there is one process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return measurement
    drifts = [reading.drift for reading in measurement.readings.values()]
    sums = samples * torch.tensor([*drifts, measurement.loss, 1.0], dtype=torch.float64)
    sums = sums.to(device)
    dist.all_reduce(sums)
    *means, loss = (sums[:-1] / sums[-1]).tolist()
    readings = {
        name: dataclasses.replace(reading, drift=mean)
        for (name, reading), mean in zip(measurement.readings.items(), means, strict=True)
    }
    return dataclasses.replace(measurement, readings=readings, loss=loss)
