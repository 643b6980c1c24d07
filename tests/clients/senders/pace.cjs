// One event every PACE_MS, then the word "sent"; when standard input ends, the client is closed as its manual says.
const [base, token, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const PACE_MS = 10;

function run(name, log, close) {
  let sent = 0;
  const timer = setInterval(() => {
    sent += 1;
    log(`event ${name} ${String(sent).padStart(6, "0")} module.vpc.aws_subnet.private: Still creating...`);
    if (sent === count) {
      clearInterval(timer);
      console.log("sent");
    }
  }, PACE_MS);
  process.stdin.on("end", async () => {
    await close();
    process.exit(0);
  });
  process.stdin.resume();
}

module.exports = { base, token, run };
