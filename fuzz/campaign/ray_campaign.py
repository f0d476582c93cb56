"""Campaigns on a Ray cluster: workers run units, and results come back as they finish."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from ir.errors import InputError

try:
    import ray
except ImportError:  # an extra
    ray = None


class RayExecutor(Executor):
    """Runs calls as Ray tasks of one CPU each.

    `workers` is the number of CPUs of the cluster.

    Args:
        address: of the cluster, as `ray.init` takes it; "auto" for a running one, "local" for a new one.

    Raises:
        InputError: when ray is not installed or there is no cluster.
    """

    def __init__(self, address: str) -> None:
        if ray is None:
            raise InputError(
                "--ray needs the package ray", remedy="install graphwright with the extra: graphwright[ray]"
            )
        self._ray: Any = ray
        try:
            # a new cluster needs no dashboard, which takes long to start
            options = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, **options)
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"there is no Ray cluster at {address!r}: {error}", remedy="start one, or --ray local"
            ) from error
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a call on the cluster."""
        task = self._ray.remote(num_cpus=1)(function)
        future: Future[Any] = task.remote(*args, **kwargs).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster."""
        self._ray.shutdown()
