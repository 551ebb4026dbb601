# syntax=docker/dockerfile:1
# Two images from one file: `--target services` (producer, consumer, query service, migrations) and
# `--target gateway`, which has the code reviewer's ruff and openai in it as well.
FROM python:3.11-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv

FROM base AS service-packages
COPY logging_service/requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --no-compile --require-hashes -r /tmp/requirements.txt

FROM base AS gateway-packages
COPY gateway/requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --no-compile --require-hashes -r /tmp/requirements.txt

FROM base AS bare
# A volume that is mounted here for the first time gets this owner.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin logging-service \
 && install -d -o 10001 -g 10001 -m 0700 /data
WORKDIR /app
COPY env.template ./
COPY logging_service ./logging_service
ENV DATA_DIR=/data PRODUCER_HOST=0.0.0.0 QUERY_SERVICE_HOST=0.0.0.0 METRICS_HOST=0.0.0.0 GATEWAY_HOST=0.0.0.0
USER 10001:10001
VOLUME /data
ENTRYPOINT ["python", "-m", "logging_service.cli"]
CMD ["--help"]

FROM bare AS services
COPY --from=service-packages /venv /venv
EXPOSE 8001 8002 9091

FROM bare AS gateway
COPY --from=gateway-packages /venv /venv
COPY main.py storage.py logging_helper.py ./
COPY code_reviewer ./code_reviewer
COPY gateway ./gateway
EXPOSE 8000
CMD ["gateway"]
