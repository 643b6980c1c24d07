"""opentelemetry-exporter-otlp-proto-http, through Python's own logging."""

import logging
import sys
import time

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

PACE_SECONDS = 0.01

base, token, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
exporter = OTLPLogExporter(endpoint=f"{base}/v1/logs", headers={"Authorization": f"Bearer {token}"})
provider = LoggerProvider(resource=Resource.create({"service.name": "env0-deployments"}))
provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
logger = logging.getLogger("terraform")
logger.setLevel(logging.INFO)
logger.addHandler(LoggingHandler(logger_provider=provider))
for number in range(1, count + 1):
    logger.info("event opentelemetry %06d module.vpc.aws_subnet.private: Still creating...", number)
    time.sleep(PACE_SECONDS)
print("sent", flush=True)
sys.stdin.read()
provider.shutdown()
