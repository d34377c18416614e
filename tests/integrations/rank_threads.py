"""Ranks as threads of one process, and what they tell each other."""

import threading

import torch


class RankThreads:

    def __init__(self, ranks: int):
        self.ranks, self._meet, self._parts = ranks, threading.Barrier(ranks, timeout=60), [None] * ranks
        self.rounds = 0  # exchanges so far

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        """What every rank gives, in their order."""
        self._parts[rank] = x.clone()
        self._meet.wait()
        parts = list(self._parts)
        self.rounds += rank == 0
        self._meet.wait()
        return parts

    def each(self, work) -> list:
        """What work(rank) gives on every rank. Raises the first error of a rank."""
        results: list = [None] * self.ranks

        def run(rank: int) -> None:
            try:
                results[rank] = work(rank)
            except BaseException as error:
                results[rank] = error
                self._meet.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return results
