"""What a person can do: hand in a file, follow it, stop it, take its results. No Celery, click or vLLM here."""
