// Compiles every contract of this folder into compiled/NAME.json: `scripts/compile-contracts` installs the compiler and
// runs this. Tests use the committed JSON and need no compiler.
const crypto = require("crypto");
const fs = require("fs");
const path = require("path");
const solc = require("solc");

const names = fs.readdirSync(__dirname).filter((name) => name.endsWith(".sol"));
const content = (name) => fs.readFileSync(path.join(__dirname, name), "utf8");
const input = {
  language: "Solidity",
  sources: Object.fromEntries(names.map((name) => [name, { content: content(name) }])),
  settings: {
    optimizer: { enabled: true, runs: 200 },
    viaIR: true,
    evmVersion: "paris",
    metadata: { bytecodeHash: "none" },
    outputSelection: { "*": { "*": ["evm.bytecode.object", "evm.deployedBytecode.object"] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
const errors = (output.errors || []).filter((error) => error.severity === "error");
for (const error of output.errors || []) console.error(error.formattedMessage);
if (errors.length) process.exit(1);
for (const name of names) {
  const contract = name.replace(/\.sol$/, "");
  const { evm } = output.contracts[name][contract];
  const compiled = {
    contract,
    compiler: solc.version(),
    source_sha256: crypto.createHash("sha256").update(content(name)).digest("hex"),
    creation: "0x" + evm.bytecode.object,
    runtime: "0x" + evm.deployedBytecode.object,
  };
  fs.writeFileSync(path.join(__dirname, "compiled", contract + ".json"), JSON.stringify(compiled, null, 1) + "\n");
  console.log(contract, evm.deployedBytecode.object.length / 2, "bytes");
}
