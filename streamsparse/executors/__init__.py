"""Where a stage's steps run: in this thread, in threads, in local processes, on a Dask cluster. One contract."""

from streamsparse.executors.local import Execution, SerialExecutor, open_executor, require_reachable
from streamsparse.executors.steps import Executor, Report, Step

__all__ = ["Execution", "Executor", "Report", "SerialExecutor", "Step", "open_executor", "require_reachable"]
