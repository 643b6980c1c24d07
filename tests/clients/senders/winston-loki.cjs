const winston = require("winston");
const LokiTransport = require("winston-loki");
const { base, token, run } = require("./pace.cjs");

const transport = new LokiTransport({ host: base, basicAuth: `env0:${token}`, labels: { app: "env0" } });
const logger = winston.createLogger({ transports: [transport] });
run("winston-loki", (text) => logger.info(text, { stepName: "tf:apply" }), () => transport.close());
