"""What is true: the states of jobs, chunks and workers, and the only code that changes them."""
