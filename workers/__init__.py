"""What runs: the supervisor, the Celery worker, the runner of chunks, and the engine that it feeds."""
