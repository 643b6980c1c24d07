const winston = require("winston");
const SplunkTransport = require("winston-splunk-httplogger");
const { base, token, run } = require("./pace.cjs");

const transport = new SplunkTransport({
  splunk: { url: base, token, source: "env0-deployment-logs-source", sourcetype: "env0-sourcetype" },
});
const logger = winston.createLogger({ transports: [transport] });
// What the transport can't send it drops, and says so here.
transport.on("error", () => {});
logger.on("error", () => {});
run("winston-splunk-httplogger", (text) => logger.info(text, { stepName: "tf:apply" }), () => logger.end());
