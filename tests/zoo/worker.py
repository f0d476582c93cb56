"""What a process of the zoo does, and what is loaded before it is forked.

Loading PyTorch's tracer, the tables of the rules, timm and transformers takes more time than most models.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import resource
from collections.abc import Iterable
from multiprocessing.connection import Connection

import torch
from torch import nn

from benchmarks.models import import_torchvision
from fuzz.programs.observation import quiet
from graphwright import transform
from tests.zoo.examine import examine
from tests.zoo.models.catalogue import find

_MODULES = {"timm": "timm", "transformers": "transformers.models.llama.modeling_llama"}


def load(families: Iterable[str]) -> None:
    """Load the packages of some families, as far as they are there, and compile a small model."""
    for family in set(families) - {"own"}:
        with quiet(), contextlib.suppress(Exception):  # the models say so one by one
            import_torchvision()
            importlib.import_module(_MODULES.get(family, "torchvision"))
    with quiet():
        transform(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval(), (torch.zeros(1, 3, 4, 4),))


def work(name: str, seconds: int, pipe: Connection) -> None:
    """Examine a model in this process, and send its record as JSON; the CPU time is bounded."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    torch.set_num_threads(1)
    logging.disable()
    pipe.send(examine(find(name)).to_json())
