"""The HTTP service over a directory or bucket of runs: submit, watch, choose a budget, download.

    client ── HTTP ──> routes ──> queue (SQLite or PostgreSQL) <── worker ──> child process: one job on one run
                         │                                            │
                         └── plans, downloads: read the run           └── events ──> server-sent events

The service process never computes on a run: a job runs in a process of its own, so that a crash, a cancellation or
the lack of memory ends the job and nothing else. Everything a job must not lose is in the run itself (stages
resume) and in the database (the queue).
"""
