"""The runs of a study on Ray, on this machine or many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kn_lens._driver import Driver
from kn_lens._ray_cluster import connected
from kn_lens.engines import Home, Job, Outcome, Watch


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Computes runs in actors of Ray, a shard of records at a time; see ``_driver``.

    Attributes:
        address: of a cluster: ``auto``, ``HOST[:PORT]`` or ``ray://HOST[:PORT]``; None starts Ray on this machine.
        workers: actors; as many as the cluster has room for, one a run at most, unless given.
        gpus: share of GPUs that each actor has.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0

    def run(self, jobs: Sequence[Job], home: Home, watch: Watch) -> Iterator[Outcome]:
        """See ``Engine``.

        Raises:
            DataError: Ray is not installed, no cluster answers at the address, or no actor can be started there.
        """
        if not jobs:
            return
        threads = jobs[0].threads
        with connected(self.address, self.workers, threads=threads, gpus=self.gpus, runs=len(jobs)) as cluster:
            yield from Driver(cluster, jobs, home, watch).outcomes()
