// MLLP client and server that are not ours: the npm package @medplum/hl7.
//
//   medplum.mjs send PORT FOLDER [first] [pipelined]
//       every *.hl7 in FOLDER, each acknowledgement checked; prints "<file> <MSA-1>", then "sent N". It waits for the answer
//       of the application (AA, AE, AR), with "first" for the first answer, with "pipelined" not before all are sent.
//   medplum.mjs serve STORE [enhanced]
//       prints "listening 127.0.0.1:PORT"; writes each body to STORE/<sha256> and answers AA; "enhanced": CA, then AA
//
// The package takes messages apart and puts them together again, so it is used with messages whose segments end in CR.
import { createHash } from 'node:crypto';
import { appendFileSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.env.PEERS, 'here.cjs'));
const { Hl7Client, Hl7Server, ReturnAckCategory } = require('@medplum/hl7');
const { Hl7Message } = require('@medplum/core');

function fail(text) {
  console.error(text);
  process.exit(1);
}

function read(folder, name) {
  const text = readFileSync(join(folder, name), 'utf-8');
  const message = Hl7Message.parse(text);
  if (message.toString() !== text) {
    fail(`${name}: the package would not send these bytes`);
  }
  return message;
}

function check(name, message, answer) {
  const msa = answer.getSegment('MSA');
  const [code, id] = [msa?.getField(1).toString(), msa?.getField(2).toString()];
  console.log(name, code);
  const sent = message.getSegment('MSH').getField(10).toString();
  if (!['AA', 'CA'].includes(code) || id !== sent) {
    fail(`${name}: answered ${code} for ${id}, sent ${sent}`);
  }
}

async function send(port, folder, ...how) {
  const client = new Hl7Client({ host: '127.0.0.1', port: Number(port), encoding: 'utf-8' });
  const returnAck = how.includes('first') ? ReturnAckCategory.FIRST : ReturnAckCategory.APPLICATION;
  const names = readdirSync(folder).filter((name) => name.endsWith('.hl7')).sort();
  const underWay = [];
  for (const name of names) {
    const message = read(folder, name);
    const answered = client.sendAndWait(message, { returnAck, timeoutMs: 20000 });
    underWay.push(answered.then((answer) => check(name, message, answer)));
    if (!how.includes('pipelined')) {
      await underWay.at(-1);
    }
  }
  await Promise.all(underWay);
  console.log('sent', names.length);
  process.exit(0); // the package leaves timers behind
}

async function serve(store, mode) {
  const server = new Hl7Server((connection) => {
    connection.addEventListener('message', ({ message }) => {
      const body = Buffer.from(message.toString(), 'utf-8');
      const digest = createHash('sha256').update(body).digest('hex');
      writeFileSync(join(store, digest + '.part'), body);
      renameSync(join(store, digest + '.part'), join(store, digest));
      appendFileSync(join(store, 'order'), `${digest} ${message.getSegment('MSH').getField(10)} AA\n`);
      connection.send(message.buildAck());
    });
  });
  await server.start(0, 'utf-8', mode === 'enhanced');
  console.log(`listening 127.0.0.1:${server.server.address().port}`);
}

const [what, ...rest] = process.argv.slice(2);
if (what === 'send') {
  await send(...rest);
} else if (what === 'serve') {
  await serve(...rest);
} else {
  fail('say send PORT FOLDER [first] [pipelined] or serve STORE [enhanced]');
}
