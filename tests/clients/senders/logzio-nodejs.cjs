const { base, token, run } = require("./pace.cjs");
const url = new URL(base);

const logger = require("logzio-nodejs").createLogger({
  token,
  host: url.hostname,
  port: url.port,
  protocol: "http",
  extraFields: { name: "env0-deployment-logs" },
  // Only keeps its complaints about what it drops out of the run's output.
  callback: () => {},
});
run("logzio-nodejs", (text) => logger.log(text), () => new Promise((done) => logger.sendAndClose(done)));
