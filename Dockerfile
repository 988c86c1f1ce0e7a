# One image for the migration and for the worker.
#
# It starts from vLLM's own image and not from a slim Python one: vLLM compiles kernels while it
# runs, so it needs the CUDA tool chain and a C compiler beside it, in versions that fit each other.
# The version is the one that the CPU engine's list pins, so that both run the same vLLM.
ARG VLLM_VERSION=0.32.0
FROM vllm/vllm-openai:v${VLLM_VERSION}

WORKDIR /opt/promptmill
COPY pyproject.toml README.md LICENSE cli.py ./
COPY db ./db
COPY jobs ./jobs
COPY workers ./workers
# No extra: vLLM and its torch are in the image already, and pip leaves them as they are. The flag
# is for images whose Python is Ubuntu's own; nothing but promptmill lives in this one.
RUN python3 -m pip install --no-cache-dir --break-system-packages . \
    && promptmill --help

# A named volume takes owner and mode from the folder it first covers.
ENV PROMPTMILL_HOME=/var/lib/promptmill \
    HF_HOME=/var/cache/huggingface
RUN useradd --create-home --uid 10001 promptmill \
    && install --directory --owner=promptmill --group=promptmill --mode=0700 \
        "$PROMPTMILL_HOME" "$HF_HOME"

USER promptmill
WORKDIR /home/promptmill
# The worker gives its leases back on SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["promptmill"]
CMD ["--help"]
