// The calls of a plan by p-map and undici. See callers.py.
import pMap from 'p-map';
import { Pool } from 'undici';
import { PROMPT, HEADERS, Told, plan } from './telling.mjs';

const { url, delays_us: delaysUs, concurrency } = plan();
const told = new Told();
const pool = new Pool(url, { connections: concurrency, pipelining: 1 });

await told.clocked(() => pMap(delaysUs, async (delayUs, n) => {
  const began = performance.now();
  const answer = await pool.request({
    method: 'POST', path: `/sleep/${delayUs}`, headers: HEADERS, body: PROMPT,
  });
  const body = await answer.body.text();
  told.heard(n, performance.now() - began, answer.headers['x-server-us']);
  return body;
}, { concurrency }));

await pool.close();
told.tell();
