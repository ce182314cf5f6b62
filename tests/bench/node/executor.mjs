// The calls of a plan as the executor of a well-known guide makes them: p-map over a pool of 2 to
// 10 connections, the folders made for each task beside its call, and each result written in the
// background by a queue of 10 writers, its errors printed. See callers.py.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createPool } from 'generic-pool';
import pMap from 'p-map';
import PQueue from 'p-queue';
import { Client } from 'undici';
import { PROMPT, HEADERS, Told, plan } from './telling.mjs';

const { url, delays_us: delaysUs, concurrency, folder } = plan();
const told = new Told();
const pool = createPool(
  {
    create: async () => new Client(url, { pipelining: 1 }),
    destroy: (client) => client.close(),
  },
  {
    min: 2, max: 10, acquireTimeoutMillis: 30000,
    idleTimeoutMillis: 30000, evictionRunIntervalMillis: 10000,
  },
);
const writes = new PQueue({ concurrency: 10 });
const folders = ['results', 'logs', 'cache'].map((name) => join(folder, name));

async function call(delayUs, n) {
  const client = await pool.acquire();
  try {
    const began = performance.now();
    const answer = await client.request({
      method: 'POST', path: `/sleep/${delayUs}`, headers: HEADERS, body: PROMPT,
    });
    const body = await answer.body.text();
    told.heard(n, performance.now() - began, answer.headers['x-server-us']);
    return body;
  } finally {
    await pool.release(client);
  }
}

async function task(delayUs, index) {
  const made = folder ? folders.map((each) => mkdir(each, { recursive: true })) : [];
  const [body] = await Promise.all([call(delayUs, index), ...made]);
  if (folder) {
    writes.add(() => writeFile(join(folder, 'results', `${index}.json`), body, 'utf8'))
      .catch((error) => console.error(`not written: ${error}`));
  }
  return body;
}

await told.clocked(async () => {
  await pMap(delaysUs, task, { concurrency });
  await writes.onIdle();
});
await pool.drain();
await pool.clear();
told.tell();
